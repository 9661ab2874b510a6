"""Chooses ranks: by a number, a share, energy, EVBMF, or a budget that all layers share.

Whatever the way, a layer is only replaced if its factors have fewer weights, need fewer multiply-accumulates and
are expected to take less time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from edgecompress.decomposition.evbmf import evbmf_rank
from edgecompress.decomposition.matrices import round_rank
from edgecompress.errors import UsageError
from edgecompress.passes.base import RankPoint
from edgecompress.passes.kernel_costs import saves_time
from edgecompress.passes.low_rank.kind import Kind, Ranks
from edgecompress.passes.low_rank.sites import Site
from edgecompress.techniques import LowRank, setting_for

_RUNGS = 12  # ranks a layer that are tried for a budget, and shown
_TRIED = 6  # pairs of ranks with as many weights that are told apart by what they keep; for a budget
_FEW_TRIED = 3  # fewer, at each of these
_SHARES = (0.1, 0.25, 0.45, 0.7)  # of the layer's weights
_METHODS_WITHOUT_ENERGY = ("cp",)


@dataclass
class Candidate:
    """A layer that can be replaced, and the ranks that were looked at.

    Attributes:
        site: The layer.
        kind: How it is written in factors.
        methods: The ways of doing so that the configuration allows.
        multiple: Ranks are rounded to multiples of this.
        quantized: Whether factors have to be quicker with integer kernels, too.
    """

    site: Site
    kind: Kind
    methods: tuple[str, ...]
    multiple: int
    quantized: bool = False
    _points: dict[tuple[str, Ranks], RankPoint] = field(default_factory=dict)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the layer as it is; sizes that vary count as 1."""
        return sum(each.macs for call in self.kind.calls for each in self.kind.operators(call))

    def macs_of(self, point: RankPoint) -> int:
        """Those of its factors."""
        return sum(
            each.macs for call in self.kind.calls for each in self.kind.operators(call, point.method, point.ranks)
        )

    @property
    def is_known(self) -> bool:
        """Whether all sizes are known."""
        return all(call.is_known for call in self.kind.calls)

    def point(self, method: str, ranks: Ranks) -> RankPoint:
        """Works out what ranks cost and keep, once."""
        ranks = self.kind.settle(method, ranks)
        key = (method, ranks)
        if key not in self._points:
            weight_error, output_error = self.kind.errors(method, ranks)
            energy = 1 - weight_error**2
            if method not in _METHODS_WITHOUT_ENERGY:
                pairs = zip(self.kind.spectra(method), ranks, strict=True)
                energy = min(spectra.energy(rank) for spectra, rank in pairs)
            point = RankPoint(
                method=method, ranks=ranks, energy=energy, params=self.kind.factor_params(method, ranks), macs=0,
                weight_error=weight_error, output_error=output_error,
            )  # fmt: skip
            macs = self.macs_of(point) if self.is_known else None
            self._points[key] = point.model_copy(update={"macs": macs})
        return self._points[key]

    def loss(self, point: RankPoint) -> float:
        """The squared relative error of the outputs, or of the weights where there are no samples."""
        return (point.weight_error if point.output_error is None else point.output_error) ** 2

    def objection(self, point: RankPoint) -> str | None:
        """Returns why the layer is better left alone than written so, or None."""
        kind = self.kind
        if point.params >= kind.params:
            return f"{point.params:,} weights instead of {kind.params:,}"
        before, after = self.macs, self.macs_of(point)
        if kind.adds_arithmetic:
            return None  # `choose` looks at the model as a whole
        if after >= before:
            return f"{after:,} MACs instead of {before:,}"
        whole = [each for call in kind.calls for each in kind.operators(call)]
        parts = [each for call in kind.calls for each in kind.operators(call, point.method, point.ranks)]
        quicker = saves_time(whole, parts, dynamic=self.quantized)
        return None if quicker else f"{after:,} MACs instead of {before:,}, but not quicker"

    def ladder(self, method: str) -> tuple[Ranks, ...]:
        """Returns ranks from the smallest to the largest that save weights, all matrices at about the same energy.

        Where energies do not compare, any ranks may go together: see `largest`.
        """
        full = self.kind.full_ranks(method)
        widest = max(range(len(full)), key=lambda number: full[number])
        rungs: dict[Ranks, None] = {}
        for rank in self._steps(full[widest]):
            ranks = self.kind.settle(method, self._alongside(method, widest, rank))
            if self.kind.factor_params(method, ranks) < self.kind.params:
                rungs[ranks] = None
        return tuple(rungs)

    def _steps(self, limit: int) -> list[int]:
        """Returns the ranks that are tried for a matrix of this full rank."""
        # Those below the multiple are for who asks for a share that no multiple leaves.
        small = [rank for rank in (1, 2, 4, 8, 16) if rank < min(self.multiple, limit)]
        return [*small, *range(self.multiple, limit, self.multiple)]

    def _alongside(self, method: str, widest: int, rank: int) -> Ranks:
        full = self.kind.full_ranks(method)
        if len(full) == 1:
            return (rank,)
        spectra = self.kind.spectra(method)
        energy = spectra[widest].energy(rank)
        return tuple(
            rank if number == widest
            else round_rank(spectra[number].rank_for_energy(energy), full[number], self.multiple, up=True)
            for number in range(len(full))
        )  # fmt: skip

    def largest(self, method: str, params: float) -> tuple[Ranks, ...]:
        """Returns the largest ranks with at most so many weights: several, where more of one are less of another."""
        if self.kind.energies_compare:
            fitting = [ranks for ranks in self.ladder(method) if self.kind.factor_params(method, ranks) <= params]
            return tuple(fitting[-1:])
        first, second = self.kind.full_ranks(method)
        found: list[Ranks] = []
        for rank in [first, *reversed(self._steps(first))]:
            together = (self.kind.settle(method, (rank, other)) for other in [second, *reversed(self._steps(second))])
            best = next((ranks for ranks in together if self.kind.factor_params(method, ranks) <= params), None)
            # The next one has less of the first; it is worth a look only if it has more of the second.
            if best is not None and best != (first, second) and (not found or best[1] > found[-1][1]):
                found.append(best)
        return _evenly(found, _TRIED)

    def few(self, method: str) -> tuple[Ranks, ...]:
        """Returns some ranks that save weights, evenly spread."""
        if self.kind.energies_compare:
            return _evenly(self.ladder(method), _RUNGS)
        found = [_evenly(self.largest(method, share * self.kind.params), _FEW_TRIED) for share in _SHARES]
        return tuple(dict.fromkeys(ranks for each in found for ranks in each))


def _evenly(rungs: Sequence[Ranks], count: int) -> tuple[Ranks, ...]:
    if len(rungs) <= count:
        return tuple(rungs)
    return tuple(rungs[round(number * (len(rungs) - 1) / (count - 1))] for number in range(count))


@dataclass(frozen=True)
class Chosen:
    """What was chosen for a candidate: a point, or none, and why the layer is left alone, or None."""

    point: RankPoint | None
    objection: str | None

    @property
    def taken(self) -> RankPoint | None:
        """What the layer is replaced by."""
        return self.point if self.objection is None else None


def choose(candidates: Sequence[Candidate], spec: LowRank, *, params: int, macs: int | None) -> dict[str, Chosen]:
    """Chooses a rank for each layer, or to leave it alone.

    Args:
        candidates: The layers that can be written in factors.
        spec: The way of choosing.
        params: Number of weights of the whole model.
        macs: Multiply-accumulates of the whole model for one sample, or None.

    Returns:
        What was chosen, by the layer's name.

    Raises:
        UsageError: A budget cannot be met.
    """
    way, value = spec.choice
    free = [each for each in candidates if setting_for(each.site.name, spec.layers, None) is None]
    chosen = {each.site.name: _choose_one(each, _named_way(each, spec)) for each in candidates if each not in free}
    if way not in ("params_budget", "flops_budget"):
        chosen |= {each.site.name: _choose_one(each, (way, value)) for each in free}
        return _without_slow_lookups(candidates, chosen)
    budget = _Budget.of(way, value, params=params, macs=macs)
    chosen = _without_slow_lookups(candidates, chosen | _share(budget, free, chosen, candidates))
    # A lookup that was named may have been left alone after all.
    if (left := budget.left(candidates, chosen)) > budget.limit:
        raise budget.missed(left)
    return chosen


@dataclass(frozen=True)
class _Budget:
    """What a model may keep.

    Attributes:
        way: 'params_budget' or 'flops_budget'.
        whole: What it has now: weights, or multiply-accumulates.
        limit: What it may keep, in the same.
    """

    way: str
    whole: int
    limit: float

    @classmethod
    def of(cls, way: str, value: float, *, params: int, macs: int | None) -> _Budget:
        whole = params if way == "params_budget" else macs
        if whole is None:
            raise UsageError(
                "flops_budget needs the model's MACs, which are not known: a size varies, or a layer is not counted",
                fix="pass --input-shape, or use params_budget",
            )
        return cls(way, whole, value * whole if value < 1 else value / (1 if way == "params_budget" else 2))

    def cost(self, candidate: Candidate, point: RankPoint | None) -> int:
        """What a layer takes, as it is or in factors."""
        if self.way == "params_budget":
            return candidate.kind.params if point is None else point.params
        return candidate.macs if point is None else candidate.macs_of(point)

    def left(self, candidates: Sequence[Candidate], chosen: Mapping[str, Chosen]) -> int:
        """What the model takes with what was chosen; layers that nothing was chosen for yet stay as they are."""
        named = ((each, chosen.get(each.site.name)) for each in candidates)
        return self.whole - sum(
            self.cost(each, None) - self.cost(each, one.taken) for each, one in named if one is not None
        )

    def missed(self, left: int) -> UsageError:
        unit = 1 if self.way == "params_budget" else 2  # a multiply-accumulate is two floating-point operations
        return UsageError(
            f"low_rank: {self.way} cannot be met", expected=f"{unit * self.limit:,.0f}",
            received=f"{unit * left:,} at least", fix="give a larger one, or prune as well",
        )  # fmt: skip


def _named_way(candidate: Candidate, spec: LowRank) -> tuple[str, float]:
    value = setting_for(candidate.site.name, spec.layers, None)
    return ("rank" if isinstance(value, int) else "ratio"), value


def _choose_one(candidate: Candidate, way: tuple[str, float]) -> Chosen:
    points = [
        candidate.point(method, ranks) for method in candidate.methods for ranks in _ranks(candidate, method, *way)
    ]
    if not points:
        return Chosen(None, _nothing_to_choose(candidate, *way))
    good = [point for point in points if candidate.objection(point) is None]
    # Ways that keep as much are told apart by what they cost; ways that cost as much, by what they keep.
    by_cost: Callable[[RankPoint], float] = candidate.macs_of
    best = min(good or points, key=candidate.loss if way[0] in ("ratio", "rank") else by_cost)
    return Chosen(best, candidate.objection(best))


def _ranks(candidate: Candidate, method: str, way: str, value: float) -> tuple[Ranks, ...]:
    """Returns the ranks that a way of choosing gives: none, one choice, or several to tell apart by what they keep."""
    kind, multiple = candidate.kind, candidate.multiple
    full = kind.full_ranks(method)
    if way == "rank":
        return (tuple(min(int(value), each) for each in full),) if value < max(full) else ()
    if way == "ratio":
        return candidate.largest(method, value * kind.params)
    if way == "energy":
        found = [each.rank_for_energy(value) for each in kind.spectra(method)]
    else:
        found = [max(map(evbmf_rank, together)) for together in kind.matrices(method)]
    rounded = (round_rank(rank, limit, multiple, up=True) for rank, limit in zip(found, full, strict=True))
    if kind.energies_compare:
        return (tuple(rounded),)
    # A matrix too small for the multiple saves next to nothing beside the other one, and may be all that a step sees.
    return (tuple(limit if limit <= multiple else rank for rank, limit in zip(rounded, full, strict=True)),)


def _nothing_to_choose(candidate: Candidate, way: str, value: float) -> str:
    full = max(max(candidate.kind.full_ranks(method)) for method in candidate.methods)
    if way == "rank":
        return f"rank {int(value)} is not below the full rank, {full}"
    return f"no rank leaves it {value:.3g} of its {candidate.kind.params:,} weights"


def _share(
    budget: _Budget, free: Sequence[Candidate], chosen: dict[str, Chosen], candidates: Sequence[Candidate]
) -> dict[str, Chosen]:
    """Takes the step that costs the least error for what it saves, again and again, until the model fits."""
    left = budget.left(candidates, chosen)
    state: dict[str, RankPoint | None] = {each.site.name: None for each in free}
    steps = {each.site.name: list(_good_points(each)) for each in free}
    while left > budget.limit:
        spare = _macs_saved(candidates, chosen | {name: Chosen(point, None) for name, point in state.items()})
        moves = [
            ((each.loss(point) - _loss_now(each, now)) / saved, each.site.name, point, saved)
            for each in free
            for now in (state[each.site.name],)
            for point in steps[each.site.name]
            if (saved := budget.cost(each, now) - budget.cost(each, point)) > 0
            and (now is not None or not each.kind.adds_arithmetic or each.macs_of(point) < spare)
        ]
        if not moves:
            raise budget.missed(left)
        _, name, point, saved = min(moves, key=lambda move: (move[0], move[1]))
        state[name], left = point, left - saved
    return {
        name: Chosen(point, None if point is not None else "left as it is: the budget is met without it")
        for name, point in state.items()
    }


def _loss_now(candidate: Candidate, point: RankPoint | None) -> float:
    return 0.0 if point is None else candidate.loss(point)


def _good_points(candidate: Candidate) -> Iterator[RankPoint]:
    for method in candidate.methods:
        for ranks in candidate.few(method):
            point = candidate.point(method, ranks)
            if candidate.objection(point) is None:
                yield point


def _macs_saved(candidates: Sequence[Candidate], chosen: Mapping[str, Chosen]) -> int:
    """Returns how many multiply-accumulates the layers that were chosen save; those of factors of lookups cost some."""
    taken = ((each, chosen[each.site.name].taken) for each in candidates)
    return sum(each.macs - each.macs_of(point) for each, point in taken if point is not None)


def _without_slow_lookups(candidates: Sequence[Candidate], chosen: dict[str, Chosen]) -> dict[str, Chosen]:
    """Leaves embeddings alone where the arithmetic of their factors is more than the other layers save.

    A lookup needs no arithmetic, its factors do: for one layer alone they would never be worth it.
    """
    lookups = [
        (each, point) for each in candidates
        if each.kind.adds_arithmetic and (point := chosen[each.site.name].point) is not None
    ]  # fmt: skip
    result = dict(chosen)
    for each, point in sorted(lookups, key=lambda pair: -pair[0].macs_of(pair[1])):
        if result[each.site.name].objection is None and _macs_saved(candidates, result) <= 0:
            reason = f"{each.macs_of(point):,} MACs instead of a lookup, more than the other layers save"
            result[each.site.name] = Chosen(point, reason)
    return result
