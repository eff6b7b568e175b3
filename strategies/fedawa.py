"""The server learns the weights of the average from the clients' updates alone."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from fedsim.models.params import Params
from fedsim.strategy import ClientUpdate, CountOrZero, Option, Positive, Strategy


class FedAwa(Strategy, shared="all"):
    """Weight clients so that their updates agree and their models stay near the global one, without data: FedAWA.

    References
    ----------
    Shi et al. 2025, FedAWA: adaptive optimization of aggregation weights in federated learning using client vectors,
    arXiv 2503.15842.

    Notes
    -----
    The weights p descend sum_k p_k d(w_k, w_t) + sum_k p_k ||g_k - sum_j p_j g_j||, with g_k = w_k - w_t and d one
    minus the cosine. They are n_k exp(t_k) over their sum: t_k begins at 0, where they are FedAvg's, and is kept for
    each client; the optimiser begins again in each round. The authors' code begins with the softmax of the shares of
    examples, which is nearly uniform, averages with the weights before the last step, and decays them in SGD; it keeps
    them by place among the participants, so that with partial participation clients get those of others. Running
    statistics are averaged with the same weights; there they stay the server's.
    """

    steps: CountOrZero = Option(1, "Steps of the weights in each round; 0 is FedAvg.")
    optimizer: Literal["adam", "sgd"] = Option("adam", "Optimiser of the weights.")
    weight_lr: Positive = Option(0.001, "Step size of the weights; with SGD the authors' is 0.01.")

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        learned = self.memory.setdefault("learned", {})
        examples = torch.tensor([update.num_examples for update in updates], dtype=torch.float64)
        zero = torch.zeros((), dtype=torch.float64)
        t = torch.stack([learned.get(str(update.client), zero).cpu() for update in updates]).requires_grad_()
        far, products = self._distances(updates)
        optimizer = self._optimizer_of(t)
        for _ in range(self.steps):
            optimizer.zero_grad()
            p = (examples.log() + t).softmax(0)
            # Of ||g_k - sum_j p_j g_j||, squared; at 0 the norm has no gradient.
            apart = products.diagonal() - 2 * products @ p + p @ products @ p
            (p @ far + p @ apart.clamp(min=torch.finfo(apart.dtype).tiny).sqrt()).backward()
            optimizer.step()
        learned |= {str(update.client): value for update, value in zip(updates, t.detach(), strict=True)}
        return self.average(updates, (examples * t.detach().exp()).tolist())

    def _optimizer_of(self, t: Tensor) -> torch.optim.Optimizer:
        if self.optimizer == "sgd":
            return torch.optim.SGD([t], lr=self.weight_lr, momentum=0.9)
        return torch.optim.Adam([t], lr=self.weight_lr, betas=(0.5, 0.999))

    def _distances(self, updates: Sequence[ClientUpdate]) -> tuple[Tensor, Tensor]:
        """Return each model's distance from the global one, [n], and the products of the centred updates, [n, n]."""
        n = len(updates)
        whole, products = (torch.zeros(size, size, dtype=torch.float64) for size in (n + 1, n))
        for key in (key for key in self.parameters if key in updates[0].shared):
            models = [self.global_model[key], *(update.shared[key] for update in updates)]
            rows = torch.stack(models).flatten(1).double()
            # What all updates have in common cancels in their distances from their mean.
            moved = rows[1:] - rows[:1]
            centred = moved - moved.mean(0)
            whole += (rows @ rows.T).cpu()
            products += (centred @ centred.T).cpu()
        lengths = whole.diagonal().sqrt()
        return 1 - whole[0, 1:] / (lengths[0] * lengths[1:]).clamp(min=1e-8), products
