"""Terms of features: FitNet, CRD and SemCKD, with the layers that they train and the memory that they keep.

Student and teacher need no common classes. Shapes are those of the first batch, so any two networks that have
stages will do; published networks' stages are the stem and one map a stage.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from icd.losses import crd_loss, fitnet_loss, semckd_loss
from icd.losses.checks import check_positive
from icd.losses.numerics import smaller_size
from icd.scores import Batch, Scores
from icd.terms.base import Term, call


class FitNet(Term):
    """The term of `fitnet`: it trains a regressor."""

    regressor: nn.Module

    def __init__(self, stage: int = 2):
        super().__init__("fitnet", call("fitnet", **({} if stage == 2 else {"stage": stage})))
        self.stage = stage

    def build(self, student: Scores, teacher: Scores | None, images: int) -> None:
        assert teacher is not None
        source, goal = (_stage("fitnet", scores, self.stage) for scores in (student, teacher))
        norm = nn.BatchNorm2d(goal.shape[1], dtype=_full(source).dtype)
        self.regressor = nn.Sequential(_resize(source, goal), norm, nn.ReLU(inplace=True))

    def forward(self, student: Scores, teacher: Scores | None, batch: Batch) -> Tensor:
        assert teacher is not None
        regressed = self.regressor(_full(student.stages[self.stage]))
        goal = _full(teacher.stages[self.stage].detach())
        return fitnet_loss(regressed, F.adaptive_avg_pool2d(goal, regressed.shape[2:]))


class CRD(Term):
    """The term of `crd`: it trains two embeddings, and remembers those of every image."""

    student_memory: Tensor
    teacher_memory: Tensor
    constants: Tensor

    def __init__(self, negatives: int, width: int, temperature: float, momentum: float):
        given = {"negatives": negatives, "width": width, "temperature": temperature, "momentum": momentum}
        default = {"negatives": 16_384, "width": 128, "temperature": 0.07, "momentum": 0.5}
        super().__init__("crd", call("crd", **{k: v for k, v in given.items() if v != default[k]}))
        for name in ("negatives", "width", "temperature"):
            check_positive(name, given[name])
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}: give a number from 0 to below 1")
        self.negatives, self.width, self.temperature, self.momentum = negatives, width, temperature, momentum

    def build(self, student: Scores, teacher: Scores | None, images: int) -> None:
        assert teacher is not None
        if images < 2:
            raise ValueError(f"crd contrasts an image with others: {images} training image is too few")
        dtype = _full(student.features).dtype
        widths = {"student": student.features.shape[1], "teacher": teacher.features.shape[1]}
        self.embed = nn.ModuleDict(
            {name: nn.Linear(w, self.width, dtype=dtype) for name, w in widths.items()}
        )
        spread = (3 / self.width) ** 0.5
        for name in ("student_memory", "teacher_memory"):
            self.register_buffer(name, (2 * torch.rand(images, self.width, dtype=dtype) - 1) * spread)
        self.register_buffer("constants", torch.zeros(2, dtype=dtype))
        self.seed, self.calls = torch.initial_seed(), 0

    def forward(self, student: Scores, teacher: Scores | None, batch: Batch) -> Tensor:
        assert teacher is not None
        ours = F.normalize(self.embed["student"](_full(student.features).mean((2, 3))))
        theirs = F.normalize(self.embed["teacher"](_full(teacher.features.detach()).mean((2, 3))))
        loss, constants = crd_loss(
            ours,
            theirs,
            self.student_memory.clone(),  # it changes below, before the gradient is computed
            self.teacher_memory.clone(),
            batch.index,
            self._draw(batch.index),
            self.constants,
            self.temperature,
        )
        with torch.no_grad():
            self.constants.copy_(constants)
            for memory, seen in ((self.student_memory, ours), (self.teacher_memory, theirs)):
                mixed = torch.lerp(seen, memory[batch.index], self.momentum)
                memory.index_copy_(0, batch.index, F.normalize(mixed))
        return loss

    def _draw(self, index: Tensor) -> Tensor | None:
        """Return negatives of each image, (B, K), or None for all others."""
        others = len(self.student_memory) - 1
        if self.negatives >= others:
            return None
        # A function of the seed and the step, and so the same after a resume.
        generator = torch.Generator(index.device).manual_seed((self.seed * 1_000_003 + self.calls) % 2**63)
        self.calls += 1
        drawn = torch.randint(others, (len(index), self.negatives), generator=generator, device=index.device)
        return drawn + (drawn >= index[:, None])  # any image but itself

    def get_extra_state(self) -> dict[str, int]:
        return {"seed": self.seed, "calls": self.calls}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.seed, self.calls = state["seed"], state["calls"]


class SemCKD(Term):
    """The term of `semckd`: it trains queries, keys and a projection for every pair of stages."""

    queries: nn.ModuleList
    keys: nn.ModuleList
    regressors: nn.ModuleList

    def build(self, student: Scores, teacher: Scores | None, images: int) -> None:
        assert teacher is not None
        ours, theirs = _stages("semckd", student), _stages("semckd", teacher)
        self.batch = len(student.logits)
        dtype = _full(ours[0]).dtype
        self.queries = nn.ModuleList(_embedding(self.batch, dtype) for _ in ours)
        self.keys = nn.ModuleList(_embedding(self.batch, dtype) for _ in theirs)
        self.regressors = nn.ModuleList(
            nn.ModuleList(_projection(source.shape[1], goal.shape[1], dtype) for goal in theirs)
            for source in ours
        )

    def forward(self, student: Scores, teacher: Scores | None, batch: Batch) -> Tensor:
        assert teacher is not None
        ours = [_full(stage) for stage in _stages("semckd", student)]
        theirs = [_full(stage.detach()) for stage in _stages("semckd", teacher)]
        queries = self._embed(self.queries, ours)
        keys = self._embed(self.keys, theirs)
        attention = (queries @ keys.mT).softmax(2)
        projected, goals = [], []
        for i, source in enumerate(ours):
            sizes = [smaller_size(source, goal) for goal in theirs]
            pooled = [F.adaptive_avg_pool2d(source, size) for size in sizes]
            projected.append([self.regressors[i][j](x) for j, x in enumerate(pooled)])  # type: ignore[index]
            goals.append([F.adaptive_avg_pool2d(g, size) for g, size in zip(theirs, sizes, strict=True)])
        return semckd_loss(attention, projected, goals)

    def _embed(self, layers: nn.ModuleList, stages: list[Tensor]) -> Tensor:
        """Return embeddings of each image's similarities at each stage, (B, stages, width)."""
        flat = [stage.flatten(1) for stage in stages]
        similar = [F.pad(rows @ rows.mT, (0, self.batch - len(rows))) for rows in flat]
        return torch.stack([F.normalize(layer(s)) for layer, s in zip(layers, similar, strict=True)], 1)


def fitnet(stage: int = 2) -> Term:
    """Regress a stage of the student onto the teacher's, a hint (Romero et al. 2015). Published weight: 100.

    `stage` numbers the networks' stages from 0, the stem: 2 is the second of three stages, as published.
    """
    return FitNet(stage)


def crd(negatives: int = 16_384, width: int = 128, temperature: float = 0.07, momentum: float = 0.5) -> Term:
    """Contrast features with a memory of all images (Tian et al. 2020). Published weight: .8.

    Negatives are other training images, whatever their class (the published code draws them from other
    classes): all of them, or `negatives` drawn by the run's seed and the number of the step. `width` is that
    of the embeddings, `momentum` the memory's.
    """
    return CRD(negatives, width, temperature, momentum)


def semckd() -> Term:
    """Compare all stages of both networks, weighted by attention (Chen et al. 2021). Published weight: 400.

    An image's attention comes from its similarities to the other images of the batch; in a shorter batch, the
    missing images count as similarity 0.
    """
    return SemCKD("semckd", "semckd()")


def _full(maps: Tensor) -> Tensor:
    """Return maps in float32 or better."""
    return maps.to(torch.promote_types(maps.dtype, torch.float32))


def _stages(term: str, scores: Scores) -> list[Tensor]:
    """Return the maps after each stage, without the stem."""
    if len(scores.stages) < 2:
        raise ValueError(
            f"{term} compares stages, and a network has {len(scores.stages)}: it needs two or more"
        )
    return list(scores.stages[1:])


def _stage(term: str, scores: Scores, stage: int) -> Tensor:
    if not -len(scores.stages) <= stage < len(scores.stages):
        raise ValueError(f"{term} compares stage {stage}, and a network has {len(scores.stages)}, from 0")
    return scores.stages[stage]


def _resize(source: Tensor, goal: Tensor) -> nn.Module:
    """Return the published regressor: a convolution from the student's shape to the teacher's."""
    width, height = source.shape[1:3]
    channels, dtype = goal.shape[1], _full(source).dtype
    if height == 2 * goal.shape[2]:
        return nn.Conv2d(width, channels, 3, stride=2, padding=1, dtype=dtype)
    if 2 * height == goal.shape[2]:
        return nn.ConvTranspose2d(width, channels, 4, stride=2, padding=1, dtype=dtype)
    if height >= goal.shape[2] and source.shape[3] >= goal.shape[3]:
        kernel = 1 + height - goal.shape[2], 1 + source.shape[3] - goal.shape[3]
        return nn.Conv2d(width, channels, kernel, dtype=dtype)
    return nn.Conv2d(width, channels, 3, padding=1, dtype=dtype)  # the teacher's map is pooled to this size


def _embedding(images: int, dtype: torch.dtype) -> nn.Module:
    """Return the published map from similarities to queries or keys."""
    width = max(images // 4, 1)
    layers = nn.Linear(images, 2 * width, dtype=dtype), nn.Linear(2 * width, width, dtype=dtype)
    return nn.Sequential(layers[0], nn.ReLU(inplace=True), layers[1])


def _projection(source: int, goal: int, dtype: torch.dtype) -> nn.Module:
    """Return the published projection of a student's stage to a teacher's channels."""
    middle = 2 * goal
    shapes = ((source, middle, 1), (middle, middle, 3), (middle, goal, 1))
    layers: list[nn.Module] = []
    for width_in, width, kernel in shapes:
        layers.append(nn.Conv2d(width_in, width, kernel, padding=kernel // 2, bias=False, dtype=dtype))
        layers += [nn.BatchNorm2d(width, dtype=dtype), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers[:-2])
