"""A strategy of ours in a plain Flower app: 60 lines, and nothing else of fedsim on the server."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.serverapp.strategy import Result

from fedsim.federation.engines.local import LocalEngine
from strategies import LayerSet

FOLDER = Path(__file__).parents[2] / "experiments" / "flower_app"
SOURCE = FOLDER / "flower_app" / "app.py"


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    monkeypatch.syspath_prepend(FOLDER)
    from flower_app import app

    yield app
    del sys.modules["flower_app.app"]


def test_the_app_has_60_lines_at_most_and_uses_only_layer_set() -> None:
    text = SOURCE.read_text()
    assert len(text.splitlines()) <= 60
    ours = [
        (node.module, [alias.name for alias in node.names])
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in ("fedsim", "strategies", "partitions")
    ]
    assert ours == [("strategies", ["LayerSet"])]


@pytest.mark.slow
def test_the_app_learns_and_sends_only_what_is_shared(app: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    results: list[Result] = []
    start = LayerSet.start

    def remember(self: LayerSet, *arguments: object, **options: object) -> Result:
        results.append(start(self, *arguments, **options))
        return results[-1]

    monkeypatch.setattr(LayerSet, "start", remember)
    uploads = []

    class Recording(LocalEngine):
        def handle(self, messages: list[Message]) -> Iterator[Message]:
            for reply in super().handle(messages):
                if reply.metadata.message_type == "train":
                    uploads.append(set(reply.content["arrays"]))
                yield reply

    context = Context(1, 0, {}, RecordDict(), {"shared": "body", "num-server-rounds": 4})
    with Recording(lambda: app.client, clients=4, workers=1) as grid:
        app.server(grid, context)
    accuracies = [metrics["accuracy"] for metrics in results[0].evaluate_metrics_clientapp.values()]
    assert len(accuracies) == 4
    assert accuracies[-1] > max(0.85, accuracies[0])
    assert uploads == [{"0.weight", "0.bias"}] * 16
    assert set(results[0].arrays) == {"0.weight", "0.bias", "2.weight", "2.bias"}
