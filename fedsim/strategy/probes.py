"""Probes: models that began at the average, trained next to the clients' own where a strategy measures."""

from collections.abc import Sequence
from dataclasses import replace

from fedsim.models.params import Params
from fedsim.strategy.updates import ClientUpdate
from fedsim.training import ClientRule, Finished, Local, LocalPlan, Phase

PROBE = "probed"
# The probe comes last, so that a client's own model sees the same mini-batches with it and without it.
PROBING = LocalPlan((Phase(), Phase(trains=PROBE)))


def without_probe(updates: Sequence[ClientUpdate]) -> dict[int, str]:
    """Return why some clients cannot be averaged with those that trained a probe: their reply has none."""
    probing = [update.client for update in updates if PROBE in update.sets]
    if not probing:
        return {}
    missing = {update.client for update in updates}.difference(probing)
    return dict.fromkeys(sorted(missing), "its reply has no probe, so it is of an earlier round")


class ProbeRule(ClientRule):
    """Trains the set ``probed`` by the plan ``PROBING``, where the server sends it.

    What the server sends are layers of the average that the client does not take for its own model. The probe's layers
    ``among`` travel back and count as traffic; the strategy's barriers are measured on its whole model.
    """

    buffers: str
    among: str = "all"

    def start(self, local: Local) -> Local:
        """Return the client with a whole probe: its own model, with what the server has sent of the average."""
        if PROBE not in local.sets:
            return local
        return replace(local, sets={**local.sets, PROBE: {**local.params, **local.sets[PROBE]}})

    def finish(self, local: Local, started: Local) -> Finished:
        """Return what is sent and measured of the probe."""
        if PROBE not in local.sets:
            return Finished(local.params)
        probe = local.sets[PROBE]
        keys = self.layers.keys(self.layers.group(self.among), buffers=self.buffers == "shared")
        sent: Params = {key: probe[key] for key in keys}
        return Finished(local.params, sent={PROBE: sent}, measured=probe)

    @property
    def personalises(self) -> bool:
        """Whether the personalised model is more than the client's own; here the probe is only measured."""
        return False
