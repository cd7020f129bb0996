"""Intervals and paired tests: what is drawn, known answers, where there is none, and coverage on simulated data."""

import numpy as np
import pytest
from scipy.stats import binomtest, permutation_test

from jaxpneumo.score.bootstrap import (
    as_list,
    clusters,
    contributing,
    draws,
    exact,
    intervals,
    joined,
    of_ratios,
    paired,
    words,
)
from jaxpneumo.score.scores import Ratios, ratios


def test_images_of_a_patient_are_one_cluster_and_unknown_ones_their_own():
    cluster, unit = clusters(np.array(["b", "", "a", "b", ""]))
    assert len(set(cluster.tolist())) == 4
    assert cluster[0] == cluster[3]
    assert unit == {"unit": "patient", "clusters": 4, "images_without_patient": 2}
    assert clusters(np.array(["", ""]))[1]["unit"] == "image"


def test_patients_of_two_tables_are_those_of_either():
    """Names of their own, unknown ones, and a patient that one table has as two; the same in either order."""
    one, other = np.array(["a", "a", "b", "c", "", ""]), np.array(["", "x", "y", "y", "", "z"])
    first, second = joined(one, other), joined(other, one)
    for names in (first, second):
        np.testing.assert_array_equal(clusters(names)[0], [0, 0, 1, 1, 2, 3])
        np.testing.assert_array_equal(names == "", [False] * 4 + [True, False])
    np.testing.assert_array_equal(clusters(joined(one, np.array([""] * 6)))[0], clusters(one)[0])


def test_draws_take_whole_clusters_with_replacement():
    cluster = np.array([0, 1, 1, 2, 3])
    weights = np.concatenate(list(draws(cluster, 500, seed=1)))
    assert weights.shape == (500, 5)
    np.testing.assert_array_equal(weights[:, 1], weights[:, 2])
    np.testing.assert_array_equal(weights[:, [0, 1, 3, 4]].sum(axis=1), 4)
    assert weights.mean(axis=0) == pytest.approx(np.ones(5), abs=0.15)
    again = np.concatenate(list(draws(cluster, 500, seed=1)))
    np.testing.assert_array_equal(weights, again)
    assert (weights != np.concatenate(list(draws(cluster, 500, seed=2)))).any()


def test_interval_of_a_mean_is_near_the_normal_one():
    values = np.random.default_rng(0).normal(5, 2, 400)
    statistic = of_ratios({"mean": (values, np.ones(400))})
    (low, high), *_ = intervals(statistic, np.arange(400), 4000)
    error = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.03)
    # Twins bring no information of their own.
    twins = of_ratios({"mean": (np.repeat(values, 2), np.ones(800))})
    (low_twins, high_twins), *_ = intervals(twins, np.repeat(np.arange(400), 2), 4000)
    assert high_twins - low_twins == pytest.approx(high - low, rel=1e-12)


def test_score_without_images_has_no_interval():
    statistic = of_ratios({"all": (np.arange(6), np.ones(6)), "none": (np.zeros(6), np.zeros(6))})
    ends = intervals(statistic, np.arange(6), 200)
    low, high = ends[0]
    assert 0 <= low < 2.5 < high <= 5
    assert as_list(ends[1]) is None


def test_draws_that_all_agree_give_no_interval():
    """One patient, or the same value everywhere: a bootstrap interval would have no width."""
    values, ones = np.array([0.3, 0.9, 0.4, 0.1, 0.8, 0.6]), np.ones(6)
    assert np.isnan(intervals(of_ratios({"mean": (values, ones)}), np.zeros(6, int), 200)).all()
    for value in (0.0, 0.1, 1.0):
        assert np.isnan(intervals(of_ratios({"mean": (value * ones, ones)}), np.arange(6), 200)).all()


def of_first(patients: int, rng: np.random.Generator) -> Ratios:
    """A mean over the first few of 150 patients, as of a small group or of rare findings."""
    first = (np.arange(150) < patients).astype(float)
    return {"mean": (rng.beta(2, 1, 150) * first, first)}


def test_few_contributing_patients_of_many_have_no_interval():
    """Neither a score nor a difference; of exact ones, those of two patients on."""
    for patients in (4, 5):
        one, other = (of_first(patients, np.random.default_rng(seed)) for seed in (1, 2))
        trials = contributing(one, np.arange(150))
        assert trials.tolist() == [patients]
        ends = intervals(of_ratios(one), np.arange(150), 300, trials=trials)
        assert (as_list(ends[0]) is None) == (patients < 5)
        found = paired(one, other, np.arange(150), 300)["mean"]
        assert (found["interval"] is None) == (patients < 5)
        assert found["p"] is not None
    ones = np.ones(3)
    assert as_list(exact({"rate": (ones[:1], ones[:1])}, np.arange(1))[0]) is None
    assert as_list(exact({"rate": (ones, ones)}, np.arange(3))[0]) == pytest.approx(
        [*binomtest(3, 3).proportion_ci(0.95, "exact")]
    )


def test_intervals_are_widened_by_the_patients_that_contribute():
    """Not by all 150: of 6, 10 and 20 they cover the truth about as often as they say."""
    for patients in (6, 10, 20):
        rng, covered = np.random.default_rng(patients), []
        for seed in range(200):
            pairs = of_first(patients, rng)
            trials = contributing(pairs, np.arange(150))
            ((low, high),) = intervals(of_ratios(pairs), np.arange(150), 300, seed, trials=trials)
            covered.append(low <= 2 / 3 <= high)
        assert np.mean(covered) > 0.915, patients


@pytest.mark.parametrize(("successes", "patients"), [(28, 28), (6, 6), (0, 6), (0, 1205), (2, 2)])
def test_rates_of_0_and_1_have_the_exact_interval(successes, patients):
    """Clopper and Pearson's, as SciPy computes it; a patient is one trial, however many images he has."""
    expected = binomtest(successes, patients).proportion_ci(0.95, "exact")
    hits = np.full(patients, successes > 0, float)
    found = exact({"rate": (hits, np.ones(patients))}, np.arange(patients))
    assert found[0] == pytest.approx((expected.low, expected.high), abs=1e-12)
    thrice = exact({"rate": (np.repeat(hits, 3), np.ones(3 * patients))}, np.repeat(np.arange(patients), 3))
    np.testing.assert_array_equal(thrice, found)


def test_exact_intervals_by_hand():
    """28 of 28 and 6 of 6, as tables print them."""
    ones = np.ones(28)
    assert exact({"rate": (ones, ones)}, np.arange(28))[0] == pytest.approx((0.8766, 1), abs=5e-5)
    assert exact({"rate": (ones[:6], ones[:6])}, np.arange(6))[0] == pytest.approx((0.5407, 1), abs=5e-5)


def test_only_patients_that_contribute_are_trials_of_the_exact_interval():
    """Three patients with five of five regions met, two without a region; a score of other values has none."""
    pairs = {
        "met": (np.array([2, 1, 2, 0, 0.0]), np.array([2, 1, 2, 0, 0.0])),
        "mixed": (np.array([1, 1, 0, 0, 0.0]), np.ones(5)),
        "nobody": (np.zeros(5), np.zeros(5)),
    }
    np.testing.assert_array_equal(contributing(pairs, np.arange(5)), [3, 5, 0])
    np.testing.assert_array_equal(contributing(pairs, np.array([0, 0, 1, 1, 1])), [2, 2, 0])
    ends = exact(pairs, np.arange(5))
    assert ends[0] == pytest.approx(binomtest(3, 3).proportion_ci(0.95, "exact"))
    assert np.isnan(ends[1:]).all()


@pytest.mark.parametrize("rate", [0.02, 0.3, 0.9, 0.995])
def test_exact_intervals_cover_the_truth(rate):
    """Of all outcomes where each of n patients succeeds, or none, so rarely does the interval leave out the truth."""
    for n in (2, 6, 28, 300):
        ends = exact({"all": (np.ones(n), np.ones(n)), "none": (np.zeros(n), np.ones(n))}, np.arange(n))
        missed = [
            chance
            for (low, high), chance in zip(ends, (rate**n, (1 - rate) ** n), strict=True)
            if not low <= rate <= high
        ]
        assert sum(missed) <= 0.05


def test_how_intervals_were_made_is_said_in_words():
    made = {"replicates": 2000, "seed": 0, "unit": "patient", "clusters": 28}
    assert words(made).startswith("95 % intervals: bootstrap of 28 patients, 2000 replicates, seed 0; exact (Clopper-P")
    assert words(made).endswith("; no others for fewer than 5 patients")
    assert words(made | {"clusters": 4}).startswith("95 % intervals: exact (Clopper-Pearson")
    assert words(made | {"clusters": 4}).endswith("; no others, as there are fewer than 5 patients")
    assert words(made | {"clusters": 1}) == "no intervals: all images are of one patient"
    assert words(made | {"clusters": 1, "unit": "image"}) == "no intervals: one image"


def counts(rng: np.random.Generator, n: int, quality: float) -> dict[str, np.ndarray]:
    truth = rng.integers(1, 1000, n) * (rng.random(n) < 0.6)
    tp = (truth * np.clip(rng.normal(quality, 0.2, n), 0, 1)).astype(int)
    return {"tp": tp, "fp": rng.integers(0, 100, n), "fn": truth - tp}


def test_sign_flip_test_is_scipys():
    rng = np.random.default_rng(3)
    a = counts(rng, 40, 0.6)
    b = {**a, "fp": np.maximum(a["fp"] + rng.integers(-20, 30, 40), 1)}
    terms = ratios(a), ratios(b)
    found = paired(*terms, np.arange(40), 20_000)["dice"]
    samples = terms[0]["dice"][0], terms[1]["dice"][0]
    expected = permutation_test(
        samples, lambda x, y, axis: (y - x).mean(axis=axis), permutation_type="samples", n_resamples=20_000, rng=rng
    )
    assert found["difference"] == pytest.approx(expected.statistic, abs=1e-12)
    assert found["p"] == pytest.approx(expected.pvalue, abs=0.015)
    assert 0.001 < found["p"] < 0.5
    low, high = found["interval"]
    assert low < found["difference"] < high


def test_clear_and_absent_differences():
    rng = np.random.default_rng(5)
    a = counts(rng, 100, 0.5)
    same = paired(ratios(a), ratios(a), np.arange(100), 500)["dice"]
    assert (same["difference"], same["interval"], same["p"]) == (0, None, 1)
    truth = a["tp"] + a["fn"]
    perfect = paired(ratios(a), ratios({"tp": truth, "fp": 0 * truth, "fn": 0 * truth}), np.arange(100), 500)["dice"]
    assert perfect["b"] == 1
    assert perfect["interval"][0] > 0
    assert perfect["p"] == pytest.approx(1 / 501)


def test_one_patient_gives_neither_interval_nor_p_value():
    """All images of one patient; and a score to which one patient alone contributes, in either run."""
    ones, values = np.ones(6), np.arange(6.0)
    alone = paired({"x": (0 * ones, ones)}, {"x": (values, ones)}, np.zeros(6, int), 200)["x"]
    assert alone == {"a": 0.0, "b": 2.5, "difference": 2.5, "interval": None, "p": None}
    only_first = (np.arange(6) == 0).astype(float)
    found = paired({"x": (0 * ones, ones)}, {"x": (values * only_first, only_first)}, np.arange(6), 200)["x"]
    assert (found["difference"], found["interval"], found["p"]) == (0, None, None)


def test_sign_flip_test_is_valid_where_patients_have_many_images():
    """Under no difference, p is below 0.1 in a tenth of the data sets; flipping single images would find more."""
    rng = np.random.default_rng(7)
    patient = np.repeat(np.arange(30), 5)
    ps = []
    for _ in range(200):
        effect = rng.normal(size=30)[patient] + 0.1 * rng.normal(size=150)
        ones = np.ones(150)
        ps.append(paired({"x": (0 * ones, ones)}, {"x": (effect, ones)}, patient, 300)["x"]["p"])
    assert 0.04 < np.mean(np.array(ps) < 0.1) < 0.17


def simulate(rng: np.random.Generator) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Images of 150 patients: four fifths without finding, Dice of the others by patient; ten patients have many."""
    images = np.where(rng.random(150) < 0.1, 6, 1 + (rng.random(150) < 0.3))
    patient = np.repeat(np.arange(150), images)
    sick = rng.random(150) < 0.3
    skill = rng.beta(4, 2, 150)
    positive = sick[patient] & (rng.random(len(patient)) < 0.8)
    dice = np.where(
        positive, np.clip(skill[patient] + rng.normal(0, 0.1, len(patient)), 0, 1), rng.random(len(patient)) < 0.9
    )
    return dice, positive, patient


@pytest.mark.slow
def test_intervals_cover_the_truth_in_95_of_100_data_sets():
    """Means over images and over positives of 200 simulated data sets; the truth is that of a very large one."""
    rng = np.random.default_rng(2026)
    large = [simulate(rng) for _ in range(4000)]
    dice, positive = (np.concatenate([one[i] for one in large]) for i in (0, 1))
    truth = np.array([dice.mean(), dice[positive].mean()])
    covered = []
    for seed in range(200):
        dice, positive, patient = simulate(np.random.default_rng([1, seed]))
        ones = np.ones(len(dice))
        pairs = {"dice": (dice, ones), "dice_positive": (dice * positive, positive.astype(float))}
        ends = intervals(of_ratios(pairs), patient, 2000, seed, trials=contributing(pairs, patient))
        covered.append((ends[:, 0] <= truth) & (truth <= ends[:, 1]))
    share = np.mean(covered, axis=0)
    print(f"coverage over 200 data sets: dice {share[0]:.3f}, dice_positive {share[1]:.3f}")
    assert np.all((share >= 0.92) & (share <= 0.98))


def test_clusters_do_not_depend_on_how_patients_are_called():
    """Another preparation hashes the same patients to other names; the draws stay the same."""
    first, _ = clusters(np.array(["b", "", "a", "b", "", "a"]))
    second, _ = clusters(np.array(["x", "", "y", "x", "", "y"]))
    np.testing.assert_array_equal(first, [0, 1, 2, 0, 3, 2])
    np.testing.assert_array_equal(first, second)
