from collections.abc import Callable

import pytest
import torch

from tactic.kernels.estimators import (
    NAMES,
    Evidence,
    Exact,
    estimator_id,
    make_estimator,
    position_logits,
)
from tactic.kernels.estimators.fit import curve_mass, fit_curve
from tactic.kernels.index_map import map_rows, read_mask
from tactic.kernels.ranking import Ranking, rank
from tactic.kernels.selection import select
from tactic.kernels.sparse_decode import sparse_decode
from tactic.kernels.union import unite

Maker = Callable[..., "Scene"]  # noqa: F821  # the type lives in conftest
REQUESTS = [([1024, 300, 700], 20)]


def evidence_of(scene: "Scene", sinks: int = 16) -> tuple[Ranking, Evidence]:  # noqa: F821
    index = scene.index(0, sinks)
    ranking = rank(scene.q[0].float() * scene.scale, index)
    slot_ids = scene.slot_ids(0)
    always = torch.cat([slot_ids[: index.sinks], slot_ids[index.length :]])
    attended = position_logits(ranking.query, scene.k_pool, always).logsumexp(-1)
    return ranking, Evidence(ranking, scene.k_pool, slot_ids, attended)


@pytest.mark.parametrize("sinks", [0, 1, 16, 1500])
def test_ranks_are_the_clustered_positions_without_sinks(make_scene: Maker, sinks: int) -> None:
    scene = make_scene(REQUESTS)
    ranking = rank(scene.q[0] * scene.scale, scene.index(0, sinks))
    positions = ranking.positions(torch.arange(ranking.index.ranks))
    expected = torch.arange(sinks, 2024).expand(6, -1)
    assert torch.equal(positions.sort(-1).values, expected)


def test_clusters_stand_in_order_of_their_score(make_scene: Maker) -> None:
    scene = make_scene(REQUESTS)
    index = scene.index(0)
    ranking = rank(scene.q[0] * scene.scale, index)
    for head in range(6):
        scores = index.centroids[head // 3] @ ranking.query[head]
        torch.testing.assert_close(ranking.scores[head], scores.sort(descending=True).values)


def test_selection_takes_whole_clusters_and_the_union_holds_them(make_scene: Maker) -> None:
    scene = make_scene(REQUESTS)
    ranking, _ = evidence_of(scene)
    ranks = torch.tensor([0, 1, 100, 101, 1999, ranking.index.ranks])
    selected = select(ranking, ranks)
    sizes = ranking.index.sizes.repeat_interleave(3, 0)
    taken = (sizes * selected).sum(-1)
    assert (taken >= ranks).all()
    assert taken[0] == 0
    assert taken[-1] == ranking.index.ranks
    smallest = sizes.masked_fill(~selected | (sizes == 0), 10**6).amin(-1)
    assert ((taken - ranks < sizes.amax(-1)) | (smallest == 10**6)).all()
    united = unite(selected, ranking.index.sizes)
    assert (united.repeat_interleave(3, 0) | ~selected).all()
    assert torch.equal(united[0], selected[:3].any(0))
    assert united[1].all(), "one head needs nearly everything"


def test_rows_are_sorted_unique_and_of_their_head(make_scene: Maker) -> None:
    scene = make_scene(REQUESTS)
    ranking, evidence = evidence_of(scene)
    united = unite(select(ranking, torch.full((6,), 400)), ranking.index.sizes)
    mask = read_mask(ranking.index, united, 2044)
    rows, counts = map_rows(mask, evidence.slot_ids)
    assert rows.dtype == torch.int32
    assert torch.equal(counts, mask.sum(-1).to(torch.int32))
    for head, listed in enumerate(rows.split(counts.tolist())):
        assert (listed % 2 == head).all()
        where = torch.searchsorted(evidence.slot_ids.sort().values, (listed // 2).to(torch.int32))
        positions = evidence.slot_ids.argsort()[where]
        assert (positions.diff() > 0).all()
        expected = set(range(16)) | set(range(2024, 2044))
        for cluster in united[head].nonzero().flatten().tolist():
            first, size = int(ranking.index.firsts[head, cluster]), int(ranking.index.sizes[head, cluster])
            start = int(ranking.index.segment_starts[cluster])
            expected |= {start + int(m) for m in ranking.index.members[first : first + size]}
        assert set(positions.tolist()) == expected


def test_listing_everything_is_dense(make_scene: Maker) -> None:
    scene = make_scene([([100], 20), ([], 3)])
    rows, counts = [], []
    for i in range(2):
        mask = torch.ones(2, int(scene.seq_lens[i]), dtype=torch.bool)
        listed, count = map_rows(mask, scene.slot_ids(i))
        rows.append(listed)
        counts.append(count)
    indptr = torch.nn.functional.pad(torch.cat(counts).cumsum(0), (1, 0))
    out, lse = sparse_decode(scene.q, scene.k_pool, scene.v_pool, torch.cat(rows), indptr, scene.scale)
    dense_out, dense_lse = scene.dense()
    assert torch.equal(out, dense_out)
    assert torch.equal(lse, dense_lse)


def test_an_empty_list_gives_zero(make_scene: Maker) -> None:
    scene = make_scene([([100], 20)])
    none = torch.zeros(0, dtype=torch.int32)
    out, lse = sparse_decode(
        scene.q, scene.k_pool, scene.v_pool, none, torch.zeros(3, dtype=torch.int32), 1.0
    )
    assert (out == 0).all()
    assert (lse == -torch.inf).all()


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
def test_exact_is_minimal_on_the_order(make_scene: Maker, threshold: float) -> None:
    ranking, evidence = evidence_of(make_scene(REQUESTS))
    ranks = Exact().ranks(evidence, threshold)
    everything = torch.arange(ranking.index.ranks)
    weights = torch.cat([evidence.attended[:, None], evidence.logits(everything)], 1).softmax(-1).double()
    reached = weights.cumsum(-1)
    for head in range(6):
        n = int(ranks[head])
        assert reached[head, n] >= threshold - 1e-6
        ends = ranking.ends[head]
        if n:
            previous = int(ends[ends < n].max()) if (ends < n).any() else 0
            assert reached[head, previous] < threshold + 1e-6, "one cluster less would not do"


def test_exact_mass_ends_at_the_total(make_scene: Maker) -> None:
    ranking, evidence = evidence_of(make_scene(REQUESTS))
    log_mass = Exact().log_mass(evidence)
    total = position_logits(
        ranking.query, evidence.k_pool, evidence.slot_ids[16 : ranking.index.length]
    ).logsumexp(-1)
    torch.testing.assert_close(log_mass[:, -1], total)


@pytest.mark.parametrize("name", NAMES)
def test_mass_never_falls_along_the_order(make_scene: Maker, name: str) -> None:
    scene = make_scene(REQUESTS)
    _, evidence = evidence_of(scene)
    log_mass = make_estimator(estimator_id(name), scene.options()).log_mass(evidence)
    assert not log_mass.isnan().any()
    assert (log_mass[:, 1:] >= log_mass[:, :-1] - 1e-5).all()


def test_fit_finds_a_power_law() -> None:
    a, b = torch.tensor([[3.0]]), torch.tensor([[0.01]])
    fitted = fit_curve(a / 100 + b, a / 600 + b, 100.0, 600.0)
    torch.testing.assert_close(fitted, (a, b))
    ranks = torch.arange(1, 1001, dtype=torch.float64)
    for begin in (3, 5, 20):
        ends = torch.tensor([[begin, begin + 1, 500, 1000]])
        expected = torch.stack([(3 / ranks + 0.01)[begin:end].sum() for end in ends[0].tolist()])[None]
        torch.testing.assert_close(curve_mass(a, b, begin, ends), expected.float(), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("m1", "m2"), [(0.2, 0.5), (0.3, 0.3), (0.5, 0.0), (0.0, 0.0), (1e-30, 1e-38)])
def test_the_curve_is_monotone_and_not_negative(m1: float, m2: float) -> None:
    a, b = fit_curve(torch.tensor([[m1]]), torch.tensor([[m2]]), 100.0, 600.0)
    assert (a >= 0).all()
    mass = curve_mass(a, b, 20, torch.arange(20, 1001)[None])
    assert mass.isfinite().all()
    steps = mass.diff()
    assert (steps >= -1e-4).all()
    assert (steps.diff() <= 1e-4).all()


def test_estimators_reach_their_share(make_scene: Maker) -> None:
    """Statistics on fixed captures; a change of the estimators shows here."""
    reached: dict[str, list[torch.Tensor]] = {"fit": [], "centroid": [], "exact": []}
    spent: dict[str, list[torch.Tensor]] = {"fit": [], "centroid": [], "exact": []}
    for seed in range(4):
        scene = make_scene([([4096], 64)], dim=32, seed=seed)
        ranking, evidence = evidence_of(scene)
        everything = evidence.logits(torch.arange(ranking.index.ranks))
        weights = torch.cat([evidence.attended[:, None], everything], 1).softmax(-1).cumsum(-1)
        for name, shares in reached.items():
            ranks = make_estimator(estimator_id(name), scene.options()).ranks(evidence, 0.9)
            shares.append(weights.gather(1, ranks[:, None]).flatten())
            spent[name].append(ranks.float())
    share = {name: torch.cat(values) for name, values in reached.items()}
    tokens = {name: torch.cat(values).mean().item() for name, values in spent.items()}
    assert (share["exact"] >= 0.9 - 1e-5).all()
    assert share["fit"].mean() >= 0.9
    assert (share["fit"] >= 0.9).float().mean() >= 0.6
    assert share["fit"].min() >= 0.84
    assert share["centroid"].min() >= 0.89
    assert tokens["fit"] <= 1.06 * tokens["exact"]
    assert tokens["centroid"] <= 1.03 * tokens["exact"]


def test_unknown_estimators_are_named() -> None:
    with pytest.raises(
        ValueError, match="estimator='best' is unknown, use one of fit, centroid, exact, guarded"
    ):
        estimator_id("best")
