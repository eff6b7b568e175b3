"""The methods that average one fixed layer group, under the names that their papers gave them."""

import pytest

from tests.strategies.harness import Play, assert_close, norm_mlp


@pytest.mark.parametrize(
    ("name", "shared", "layers"),
    [
        ("fedavg", "all", ("fc1", "bn", "fc2", "fc3")),
        ("fedper", "body", ("fc1", "bn", "fc2")),
        ("lg_fedavg", "head", ("fc3",)),
        ("fedbn", "!norm", ("fc1", "fc2", "fc3")),
    ],
)
def test_a_method_by_name_is_layer_set_with_its_group(name: str, shared: str, layers: tuple[str, ...]) -> None:
    named, same = Play(name, model=norm_mlp), Play("layer_set", {"shared": shared}, model=norm_mlp)
    for server_round in named.rounds():
        assert_close(named.strategy.global_model, same.round(server_round), tolerance=0.0)
        assert named.strategy.shared(server_round).layers == layers
        for client in range(3):
            assert_close(named.personalised(client), same.personalised(client), tolerance=0.0)
