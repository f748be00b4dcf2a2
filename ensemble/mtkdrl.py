"""Multi-Teacher Knowledge Distillation with Reinforcement Learning for Visual Recognition (Yang et al., AAAI 2025)."""

from __future__ import annotations

import copy
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ensemble.base import NOWHERE, EnsembleMethod, TeacherLosses, ensemble_dict
from helper import distributed
from helper.kl import full_precision, softened_kl

HIDDEN = 128
RATE = 0.1
"""Learning rate of the agent's plain SGD, as released."""


class Shown(NamedTuple):
    """What the agent is shown of a batch, and the losses that its weights are for; ``[B, K]`` but for the state."""

    state: Tensor  # [B, W]
    certain: Tensor
    close: Tensor
    losses: Tensor


class Agent(nn.Module):
    """State ``[B, W]`` → weights ``[B, K]`` that sum to 1: the mean of a softmax of its own and two that are given.

    Args:
        width: W.
        teacher_num: K.
        dynamic: the mean is weighted, by a softmax of three numbers that are learned.
    """

    factors: Tensor

    def __init__(self, width: int, teacher_num: int, dynamic: bool) -> None:
        super().__init__()
        self.steam = nn.Linear(width, HIDDEN, bias=False)
        self.head = nn.Linear(HIDDEN, teacher_num)
        if dynamic:
            self.factors = nn.Parameter(torch.ones(3))
        else:
            self.register_buffer("factors", torch.ones(3))

    def forward(self, state: Tensor, certain: Tensor, close: Tensor) -> Tensor:
        own = self.head(self.steam(state).relu()).softmax(1)
        return (torch.stack((own, certain, close), -1) * self.factors.softmax(0)).sum(-1)


@ensemble_dict.register("MTKDRL")
class MTKDRL(nn.Module, EnsembleMethod):
    """``w_kb = ⅓(π_kb + (1 − softmax_k CE_kb)/(K − 1) + softmax_k d_kb)``, π of an agent that learns from the student.

    d is the student's softened KL to teacher k, at the level of maps the cosine to its pooled map. The agent sees all
    of these, CE, the teacher's logits and its pooled map, if there is one. Until it has learned for an epoch all
    weights are 1 (released). Each level has an agent of its own; the two of the released code share the first layer.

    Teachers that do not know a sample's class are left out of both softmaxes, and the agent sees 0 as their CE and KL.

    The released agent minimises ``−Σ_k r_b log w_kb`` for a reward ``r_b`` from 0 to 1 of the sample: whatever the
    weights have done to the student, that is least where they are equal, so it can only learn its way back to the
    average. With ``reward`` it maximises ``Σ_k w_kb A_kb``, the policy gradient of a teacher that is drawn with
    probability w: A is how much smaller the student's loss would have been under this teacher alone.

    The agent takes a step of SGD after each of the student's, and acts as what it has become from the next epoch on.
    That is what the released code does at the end of an epoch, whose states it keeps until then.

    Args:
        policy: what the agent learns from.
        dynamic: the three thirds become a softmax of three numbers that the agent learns.
        kd_T: temperature of the KL.
    """

    nonnegative = reads_vectors = True
    differentiable = False
    taught: Tensor
    acts: Tensor

    def __init__(
        self,
        *,
        policy: Annotated[Literal["released", "reward"], "what the agent learns from"] = "released",
        dynamic: Annotated[bool, "the agent learns what its own and the two given weights count"] = False,
        kd_T: float = 4.0,
    ) -> None:
        super().__init__()
        self.policy, self.dynamic, self.kd_T = policy, dynamic, kd_T
        self.seen: list[Shown] = []
        """Of the micro-batches of the step that is being made."""

    def attach(self, teachers: TeacherLosses) -> None:
        seen = self.look(teachers)
        self.agent = Agent(seen.state.shape[1], seen.losses.shape[1], self.dynamic)
        self.pupil = copy.deepcopy(self.agent)
        self.register_buffer("taught", torch.tensor(False))
        self.register_buffer("acts", torch.tensor(False))
        # The student's optimizer leaves both alone.
        self.agent.requires_grad_(False)
        self.pupil.requires_grad_(False)

    @torch.no_grad()
    def look(self, teachers: TeacherLosses) -> Shown:
        """What the agent is shown."""
        theirs = full_precision(teachers.teacher_logits)  # [K, B, C]
        K, B, _ = theirs.shape
        target = teachers.target.repeat(K)
        cross_entropy = F.cross_entropy(theirs.flatten(0, 1), target, reduction="none").view(K, B)
        divergence = softened_kl(over_known(teachers), theirs, self.kd_T)
        vectors = [(full_precision(mine), full_precision(other)) for mine, other in teachers.vectors]
        cosine = [F.cosine_similarity(mine, other) for mine, other in vectors]
        said = [teachers.where_known(each, 0.0) for each in (divergence, cross_entropy)]
        logits = moderate(theirs, teachers.knows)
        columns: list[Tensor] = []
        for k in range(K):
            columns.append(torch.stack([*cosine[k : k + 1], *(each[k] for each in said)], 1))
            columns += [*(other for _, other in vectors[k : k + 1]), logits[k]]
        compared = cross_entropy, torch.stack(cosine) if cosine and teachers.level == "feature" else divergence
        wrong, close = (teachers.where_known(each, -NOWHERE).softmax(0) for each in compared)
        return Shown(
            state=torch.cat(columns, 1),
            certain=((1 - wrong) / (K - 1)).T,
            close=close.T,
            losses=losses_alone(teachers).T,
        )

    def weights(self, teachers: TeacherLosses) -> Tensor:
        seen = self.look(teachers)
        if self.training:
            self.seen.append(seen)
        with torch.autocast(seen.state.device.type, enabled=False):
            weights = self.agent(*self._inputs(seen)).T
        return torch.where(self.acts, weights, 1.0)

    def _inputs(self, seen: Shown) -> list[Tensor]:
        return [each.to(self.agent.head.weight.dtype) for each in (seen.state, seen.certain, seen.close)]

    def after_step(self, losses: Tensor) -> None:
        if not self.seen:
            return
        seen, self.seen = Shown(*map(torch.cat, zip(*self.seen, strict=True))), []
        names, before = zip(*self.pupil.named_parameters(), strict=True)
        with torch.enable_grad():
            now = [each.detach().requires_grad_() for each in before]
            weights = functional_call(self.pupil, dict(zip(names, now, strict=True)), tuple(self._inputs(seen)))
            loss = released_loss(weights, losses) if self.policy == "released" else reward_loss(weights, seen.losses)
            slopes = torch.autograd.grad(loss, now)
        for parameter, slope in zip(before, slopes, strict=True):
            parameter.sub_(RATE * distributed.mean(slope))
        self.taught.fill_(True)

    def after_epoch(self) -> None:
        if hasattr(self, "agent"):  # a single teacher needs none
            self.agent.load_state_dict(self.pupil.state_dict())
            self.acts.copy_(self.taught)


def over_known(teachers: TeacherLosses) -> Tensor:
    """The student's logits ``[B, C]``; ``[K, B, C]`` where teachers know some classes, whose softmax is over those."""
    assert teachers.student_logits is not None
    if teachers.knows is None:
        return teachers.student_logits
    return teachers.student_logits.masked_fill(~teachers.knows.unsqueeze(1), -NOWHERE)


def moderate(logits: Tensor, knows: Tensor | None) -> Tensor:
    """Logits ``[K, B, C]``, in classes that a teacher does not know (``knows`` ``[K, C]``) its lowest of the others.

    What stands there for a probability of 0 would drown all else that a network sees.
    """
    if knows is None:
        return logits
    known = knows.unsqueeze(1)
    return torch.where(known, logits, logits.masked_fill(~known, torch.inf).amin(2, keepdim=True))


def losses_alone(teachers: TeacherLosses) -> Tensor:
    """The student's losses under each teacher alone, ``[K, B]``.

    One that does not know a sample's class leaves it to those who do: the mean of theirs, no better and no worse.
    """
    losses, has_say = teachers.losses.detach(), teachers.has_say
    if has_say is None:
        return losses
    # theirs are K/n times as large, which their mean over all K makes up for
    return torch.where(has_say, losses * has_say.to(losses.dtype).mean(0), losses.mean(0))


def standardised(values: Tensor) -> Tensor:
    """``values`` ``[B, …]`` of this process as the batch of all has mean 0 and deviation 1; 0 if all are the same."""
    everywhere = distributed.gathered(values)
    if everywhere.numel() == 1:
        return torch.zeros_like(values)
    deviation = everywhere.std()
    return torch.where(deviation > 0, (values - everywhere.mean()) / deviation, 0.0)


def released_loss(weights: Tensor, losses: Tensor) -> Tensor:
    """``−mean_bk r_b log w_bk`` of weights ``[B, K]`` and the student's whole losses ``[B]``.

    The reward r is minus the loss, standardised in the batch, from 0 to 1: samples below the average teach nothing.
    """
    reward = standardised(-losses).clamp(0, 1)
    return -(reward.unsqueeze(1) * weights.clamp_min(torch.finfo(weights.dtype).tiny).log()).mean()


def reward_loss(weights: Tensor, losses: Tensor) -> Tensor:
    """``−mean_b Σ_k w_bk A_bk`` of weights and the student's losses under each teacher ``[B, K]``.

    What a sample costs under all teachers alike, such as its cross-entropy, has no influence.
    """
    return -(weights * standardised(losses.mean(1, keepdim=True) - losses)).sum(1).mean()
