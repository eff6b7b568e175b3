"""The server learns on a few held-out examples how much each client counts and how much the average shrinks."""

import math
from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Ge
from torch.func import functional_call

from fedsim import seeds
from fedsim.models.copies import copy_of
from fedsim.models.norms import StatisticsNorm
from fedsim.models.params import Params
from fedsim.strategy import ClientUpdate, CountOrZero, Option, Positive, Strategy
from fedsim.training.targets import real_targets


class FedLaw(Strategy):
    """Learn the weights of the clients and a shrinking factor on a small data set of the server: FedLAW.

    References
    ----------
    Li et al. 2023, Revisiting weighted aggregation in federated learning with neural networks, arXiv 2302.10911.

    Notes
    -----
    The new model is gamma sum_k p_k w_k, p = softmax(log n + t) and gamma = exp(s), where t and s begin each round at
    0, so at FedAvg, and descend the loss on ``data.server_examples`` training examples that no client has, by Adam with
    betas 0.5 and 0.999, whose step size halves every 20 epochs. The authors hold out 2 % of the test set, balanced by
    class, and report on the rest of it; here the test set stays whole, and the examples keep the classes' shares. Their
    step size is 0.01 for CIFAR-10 and 0.005 else. Running statistics begin at the clients' mean and follow the
    mini-batches while the weights are learned, as they must for a model that has shrunk; there they begin at the
    server's. What the server computes is not among the passes that are counted.
    """

    needs_server_data = True
    epochs: CountOrZero = Option(20, "Epochs of the server in each round; 0 is FedAvg.")
    weight_lr: Positive = Option(0.01, "Step size of the weights and the factor.")
    batch_size: Annotated[int, Ge(3)] = Option(128, "Largest number of examples in a mini-batch of the server.")

    def aggregate(self, server_round: int, updates: Sequence[ClientUpdate]) -> Params:
        if self.server_data is None:
            raise ValueError("FedLaw learns on examples of the server; set its server_data, inputs and targets")
        inputs, targets = self.server_data
        whole = self.global_model | self.average(updates)
        statistics = {key: value.clone() for key, value in whole.items() if key not in self.parameters}
        members = {key: torch.stack([update.shared[key] for update in updates]) for key in self.parameters}
        examples = torch.tensor([update.num_examples for update in updates], dtype=torch.float64)
        # The weights of the clients, and last the factor.
        learned = torch.zeros(len(updates) + 1, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.Adam([learned], lr=self.weight_lr, betas=(0.5, 0.999))
        halving = torch.optim.lr_scheduler.StepLR(optimizer, 20, 0.5)
        network = copy_of(self.model).eval()
        for name, module in network.named_modules():
            module.train(isinstance(module, StatisticsNorm) and f"{name}.running_mean" in statistics)
        stream = seeds.rng(self.seed, "server batches", server_round)
        for _ in range(self.epochs):
            order = torch.from_numpy(stream.permutation(len(targets))).to(targets.device)
            # Of about the same size: none has a single example, which cannot be normalised.
            for chosen in order.tensor_split(math.ceil(len(order) / self.batch_size)):
                weights = learned[-1].exp() * (examples.log() + learned[:-1]).softmax(0)
                mixed = {key: torch.tensordot(weights.to(value), value, 1) for key, value in members.items()}
                outputs = functional_call(network, mixed | statistics, (inputs[chosen],))
                optimizer.zero_grad()
                self.training_loss.mean(outputs, targets[chosen], real_targets(targets[chosen])).backward()
                optimizer.step()
            halving.step()
        *t, s = learned.detach().exp().tolist()
        mean = self.average(updates, [n * each for n, each in zip(examples.tolist(), t, strict=True)])
        return {key: s * mean[key] if key in members else statistics[key] for key in mean}
