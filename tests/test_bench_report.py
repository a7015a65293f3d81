"""A bench's words and numbers: entries, grids, and what rows say; nothing is run."""

import math

import pytest

from zopeft.errors import InputError
from zopeft.jobs.bench.bench import render
from zopeft.jobs.bench.entry import Entry, parse_entry, with_controls
from zopeft.jobs.bench.grid import search
from zopeft.methods import METHODS
from zopeft.report.curves import draw_curves, draw_rates
from zopeft.report.measures import best_of, first_below, smoothed
from zopeft.report.rows import RowFile, read_rows
from zopeft.report.standings import report, totals
from zopeft.report.tables import brief, cells_of_row, columns, markdown


@pytest.mark.parametrize(
    ("text", "method", "finetuner", "control", "options"),
    [
        ("mezo", "mezo", None, "", {}),
        ("mezo clip=1 eps=1e-2", "mezo", None, "", {"clip": 1, "eps": 1e-2}),
        ("noise=binomial", "mezo", None, "", {"noise": "binomial"}),
        ("finetuner a/b", "zo_finetuner", "a/b", "", {}),
        (
            "finetuner='my folder' shuffled clip=2",
            "zo_finetuner",
            "my folder",
            "shuffled",
            {"clip": 2},
        ),
        ("zo_finetuner finetuner F untrained", "zo_finetuner", "F", "untrained", {}),
        ("finetuner F random", "zo_finetuner", "F", "random", {}),
        ("finetuner F scales", "zo_finetuner", "F", "scales", {}),
        ("fo_sgd momentum=0.9", "fo_sgd", None, "", {"momentum": 0.9}),
    ],
)
def test_an_entry_is_one_line(text, method, finetuner, control, options):
    entry = parse_entry(text)
    assert (entry.method, entry.finetuner, entry.control) == (method, finetuner, control)
    assert entry.options == options
    assert parse_entry(entry.line) == entry


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("mezzo", "unknown method, got 'mezzo'; did you mean 'mezo'"),
        ("mezo clipp=1", "no option 'clipp'; did you mean 'clip'"),
        ("mezo seed=1", "no option 'seed'"),
        ("mezo shuffled", "shuffled is a control of a fine-tuner"),
        ("zo_finetuner", "needs a fine-tuner"),
        ("mezo finetuner F", "uses no fine-tuner"),
        ("finetuner", "needs a folder"),
        ("mezo adam", "unknown word 'adam'"),
        ("finetuner F shuffle=x", "shuffle must be a whole number"),
        ("mezo 'a", "unreadable"),
    ],
)
def test_what_is_wrong_in_an_entry(text, told):
    with pytest.raises(InputError) as caught:
        parse_entry(text)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_method_can_be_an_entry():
    assert len(METHODS) >= 4
    for name, kind in METHODS.items():
        line = f"{name} finetuner F" if kind.needs_finetuner else name
        assert parse_entry(line).method == name


def test_controls_are_always_there():
    assert [e.line for e in with_controls([])] == ["mezo"]
    lines = [e.line for e in with_controls([parse_entry("fo_adam"), parse_entry("finetuner F")])]
    assert lines == [
        "mezo",
        "fo_adam",
        "finetuner F",
        "finetuner F shuffled",
        "finetuner F untrained",
    ]
    lines = [e.line for e in with_controls([parse_entry("finetuner F clip=1")])]
    assert "mezo clip=1" in lines
    assert "finetuner F shuffled clip=1" in lines
    named = with_controls([parse_entry("mezo label=Base")])
    assert [(e.line, e.name) for e in named] == [("mezo", "Base")]


def test_a_fine_tuner_of_each_model():
    entry = parse_entry("finetuner folder/{model}")
    assert entry.on("llama-3.2-1b").finetuner == "folder/llama-3.2-1b"
    assert entry.on("/models/Stories").finetuner == "folder/stories"


def bowl(best):
    """A loss over learning rates whose lowest point is at 2^best."""
    return lambda lr: 1.0 + (math.log2(lr) - best) ** 2


def test_a_grid_with_its_best_inside_does_not_grow():
    found = search(1.0, 2.0, 5, 3, bowl(1))
    assert (found.lr, found.edge) == (2.0, "")
    assert list(found.tried) == [0.25, 0.5, 1.0, 2.0, 4.0]


@pytest.mark.parametrize(("best", "lr"), [(4, 16.0), (-4, 0.0625)])
def test_a_grid_grows_towards_its_best(best, lr):
    found = search(1.0, 2.0, 5, 4, bowl(best))
    assert (found.lr, found.edge, len(found.tried)) == (lr, "", 8)


@pytest.mark.parametrize(("best", "edge"), [(9, "high"), (-9, "low")])
def test_a_best_beyond_the_last_point_is_flagged(best, edge):
    found = search(1.0, 2.0, 3, 2, bowl(best))
    assert (found.edge, len(found.tried)) == (edge, 5)


def test_a_grid_that_diverges_grows_downwards():
    found = search(1.0, 2.0, 3, 2, lambda lr: 1.0 if lr < 0.2 else math.inf)
    assert found.lr == 0.125
    assert best_of({1.0: math.inf, 2.0: math.inf}) == (1.0, "low")
    assert best_of({1.0: math.inf}) == (1.0, "")


def row(entry, role, seed, losses, lr=1.0, val=1.0, **more):
    """One run of a hundred points, ten forward passes each."""
    curve = [[10 * (k + 1), loss] for k, loss in enumerate(losses)]
    tail = None if None in losses[-10:] else sum(losses[-10:]) / 10
    made = {
        "key": f"{entry}|{role}|{lr}|{seed}",
        "model": "m",
        "task": "sst2",
        "space": "full",
        "settings": "0",
        "entry": entry,
        "name": entry,
        "role": role,
        "seed": seed,
        "lr": lr,
        "budget": 1000,
        "steps": 100,
        "forwards": 1000,
        "diverged": tail is None,
        "train_loss": tail,
        "val_loss": None if tail is None else val,
        "metric": None if tail is None else 0.5,
        "metric_name": None if tail is None else "accuracy",
        "curve": curve,
        "seconds": 1.0,
        "peak_bytes": None,
        "commit": None,
        "versions": {},
        "hardware": {},
    }
    return {**made, **more}


def falling(speed):
    """Falls from 2 to 1 and stays there, so many times faster than in the whole run."""
    return [max(1.0, 2.0 - speed * (k + 1) / 90) for k in range(100)]


def rows_of_a_cell():
    rows = []
    for lr, loss in ((0.5, 1.5), (1.0, 1.0), (2.0, 1.2)):
        rows.append(row("mezo", "grid", 0, [loss] * 100, lr))
        rows.append(row("fast", "grid", 0, [2.5 - loss if lr < 2 else 0.9] * 100, lr))
    for seed in (1, 2):
        rows.append(row("mezo", "fresh", seed, falling(1), val=1.0))
        better = [x - 0.1 * (seed == 1) for x in falling(2)]
        rows.append(row("fast", "fresh", seed, better, 2.0, val=0.9 if seed == 1 else 1.1))
        rows.append(row("mezo", "auto", seed, [1.1] * 100))
        rows.append(row("fast", "auto", seed, [1.8] * 99 + [None], 3.0))
    return rows


def test_what_rows_say():
    (cell,) = report(rows_of_a_cell())
    mezo, fast = cell.standings
    assert (cell.seeds, cell.metric_name) == ((1, 2), "accuracy")
    assert (mezo.lr, mezo.edge) == (1.0, "")
    assert (fast.lr, fast.edge) == (2.0, "high")
    assert mezo.train.mean == pytest.approx(1.0)
    assert fast.train.mean == pytest.approx(0.95)
    assert fast.train.std == pytest.approx(0.0707, abs=1e-3)
    assert (mezo.wins, fast.wins, fast.pairs) == (None, 1, 2)
    assert fast.wins_validation == 1
    assert mezo.reach == 990.0
    assert fast.reached == 2
    assert fast.saving == pytest.approx(1 - fast.reach / 990.0, abs=1e-2)
    assert 0.4 < fast.saving < 0.6
    assert mezo.auto_ratio == pytest.approx(1.1)
    assert (fast.diverged, fast.runs, fast.wins_auto) == (2, 4, 0)
    assert math.isinf(fast.auto.mean)
    assert totals([cell])[1]["wins"] == 1


def test_without_rates_to_try_the_runs_at_auto_are_the_bench(tmp_path):
    rows = [row("mezo", "auto", seed, falling(1), val=1.0) for seed in (1, 2)]
    rows += [row("fast", "auto", 1, falling(2), 3.0, val=0.9)]
    rows += [row("fast", "auto", 2, [1.8] * 99 + [None], 3.0)]
    (cell,) = report(rows)
    mezo, fast = cell.standings
    assert not cell.searched and cell.seeds == (1, 2)
    assert (mezo.lr, mezo.train.mean, mezo.runs) == (None, pytest.approx(1.0), 2)
    assert (fast.pairs, fast.wins, fast.wins_validation, fast.reached) == (2, 0, 1, 1)
    # A run counts once, though it stands for both.
    assert (fast.runs, fast.diverged) == (2, 1)
    assert columns(cell) == [
        *("entry", "train loss", "val loss", "accuracy", "forwards", "saving", "wins"),
        *("auto lr", "s/step"),
    ]
    head, body = brief(cell)
    assert head == ["entry", "auto lr", "train loss", "accuracy", "saving", "wins", "val loss"]
    assert body[0][:3] == ["mezo", "1.00e+00", "1.000"] and body[0][-1] == "1.000"
    file = RowFile(tmp_path)
    for one in rows:
        file.add(one)
    assert render(tmp_path)["pictures"] == ["curves.png"]
    assert not (tmp_path / "rates.png").exists() and (tmp_path / "curves.png").exists()
    assert "(rates.png)" not in (tmp_path / "report.md").read_text()


def test_runs_at_auto_never_stand_for_runs_at_the_best_rate_of_others(tmp_path):
    rows = [one for one in rows_of_a_cell() if one["entry"] == "mezo" or one["role"] == "auto"]
    (cell,) = report(rows)
    mezo, fast = cell.standings
    assert cell.searched and mezo.train is not None
    # Not run yet, as far as the table is of best rates.
    assert (fast.train, fast.pairs, fast.reached, fast.runs) == (None, 0, 0, 2)
    assert fast.pairs_auto == 2 and fast.auto is not None
    text = markdown([cell], {}, ())
    assert "beside a learning rate" in text and "ratio: that" in text
    bare = [one for one in rows if one["role"] == "auto"]
    text = markdown(report(bare), {}, ())
    assert "beside a learning rate" not in text and "ratio: that" not in text
    assert "wins: seeds" in text and "GB: most" in text


def test_a_seed_that_the_rate_was_chosen_on_is_not_reported():
    rows = rows_of_a_cell()
    (before,) = report(rows)
    (cell,) = report([*rows, row("mezo", "grid", 2, [1.0] * 100)])
    assert [one.standings[0].train.count for one in (before, cell)] == [2, 1]
    assert cell.standings[1].pairs == 1


def test_forwards_to_reach_a_loss():
    curve = row("mezo", "fresh", 0, falling(1))["curve"]
    assert len(smoothed(curve)) == 91
    assert first_below(curve, 1.5) == 500.0
    assert first_below(curve, 0.5) is None
    assert first_below([[2, 3.0], [4, 1.0]], 1.0) == 4.0


def test_never_is_said():
    rows = [row("mezo", "grid", 0, [1.0] * 100), row("slow", "grid", 0, [1.5] * 100)]
    rows += [row("mezo", "fresh", 1, [1.0] * 100), row("slow", "fresh", 1, [1.5] * 100)]
    (cell,) = report(rows)
    named = dict(zip(columns(cell), cells_of_row(cell.standings[1], cell), strict=True))
    assert (named["forwards"], named["saving"], named["wins"]) == ("never", "-", "0/1, 0/1")


def test_only_runs_at_the_best_rate_count():
    rows = rows_of_a_cell()
    rows.append(row("mezo", "grid", 0, [0.5] * 100, 4.0))
    rows.append(row("mezo", "fresh", 1, [0.4] * 100, 4.0))
    (cell,) = report(rows)
    mezo = cell.standings[0]
    assert (mezo.lr, mezo.edge, mezo.train.count) == (4.0, "high", 1)
    assert mezo.train.mean == pytest.approx(0.4)


def test_other_settings_are_another_cell():
    rows = rows_of_a_cell()
    assert len(report(rows + [{**r, "settings": "1", "key": r["key"] + "1"} for r in rows])) == 2


def test_a_report_is_written_from_rows(tmp_path):
    file = RowFile(tmp_path)
    for one in rows_of_a_cell():
        file.add(one)
    summary = render(tmp_path)
    assert summary["runs"] == 14
    assert summary["cells"][0]["standings"][1]["auto"]["mean"] is None
    text = (tmp_path / "report.md").read_text()
    assert "| fast | 2.00e+00> | 0.950 ± 0.071 (2/4 diverged) |" in text
    assert "| fast | 1 | 1/2 | 1/2 | 0/2 | 1 | 2 |" in text
    for name in ("curves.png", "rates.png"):
        assert (tmp_path / name).read_bytes()[:4] == b"\x89PNG"


def test_a_torn_last_row_is_dropped(tmp_path):
    file = RowFile(tmp_path)
    one, two = rows_of_a_cell()[:2]
    file.add(one)
    file.add(two)
    text = file.path.read_text()
    file.path.write_text(text[:-20])
    assert len(read_rows(tmp_path)) == 1
    again = RowFile(tmp_path)
    again.add(two)
    assert len(read_rows(tmp_path)) == 2
    file.path.write_text("{}\n" + text)
    with pytest.raises(InputError, match="line 1: is no row"):
        read_rows(tmp_path)


def test_markdown_has_as_many_cells_as_columns():
    cells = report(rows_of_a_cell())
    lines = [x for x in markdown(cells, {}, ()).splitlines() if x.startswith("|")]
    assert len(lines) == 7
    assert {line.count("|") for line in lines[3:]} == {len(columns(cells[0])) + 1}


def test_an_entry_has_an_order():
    assert (Entry().order, Entry("fo_adam").order) == (0, 1)


def test_pictures_have_room_for_what_stands_beside_them(tmp_path, recwarn):
    # One entry has no runs at auto, as controls have none.
    rows = [r for r in rows_of_a_cell() if r["entry"] == "mezo" or r["role"] != "auto"]
    cells = report(rows)
    for draw in (draw_curves, draw_rates):
        draw(cells, rows, tmp_path / "a.png")
        assert (tmp_path / "a.png").stat().st_size > 10_000
    assert [str(one.message) for one in recwarn if "layout" in str(one.message)] == []
