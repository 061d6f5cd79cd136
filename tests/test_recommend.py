"""What is recommended keeps every limit, comes first for a reason told, and can be typed."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import records
from desk import lay

from bitsweep import cli
from bitsweep.artifacts import Artifacts
from bitsweep.commands.export import _prepared
from bitsweep.compose import compose
from bitsweep.config import job
from bitsweep.errors import UserError
from bitsweep.export import containers, contents, names
from bitsweep.models import skeleton
from bitsweep.record import Delta, Metric, Record
from bitsweep.report.acceptance import Acceptance, Amount
from bitsweep.report.frame import frame
from bitsweep.report.recommend import limits
from bitsweep.report.recommend.answer import Answer, Question, answers
from bitsweep.report.recommend.exportable import LIBRARIES, leaving
from bitsweep.report.recommend.table import columns
from bitsweep.store import Store

RESULTS = Path(__file__).parents[1] / "results"
CONF = Path(__file__).parents[1] / "conf"
TWO_KINDS = "policy.rules=[{role: linear}, {role: attention.qkv, bits: 8, group_size: -1}]"


def size(mib: float) -> Metric:
    """Of a model whose full precision takes 10 MiB."""
    share = Delta("ratio", mib / 10, mib / 10, mib / 10)
    return Metric("file_mib", mib, "MiB", "lower", "file|v1", delta=share)


def quality(kept: float, half: float = 0.001) -> Metric:
    """A perplexity of which full precision's is the share ``kept``, ± ``half`` of it."""
    base = records.FULL_PRECISION_PPL["in_domain"]
    return records.ppl(base / kept, base / (kept + half), base / (kept - half))


def point(
    method: str, bits: int, kept: float, mib: float, half: float = 0.001, **changes: object
) -> Record:
    return records.record(method, bits, metrics=[quality(kept, half), size(mib)], **changes)


def timed(record: Record, speed: float, half: float = 0.01, device: str = "laptop") -> Record:
    metric = Metric(
        "decode_vs_bf16", speed, "", "higher", "latency|engine:torch_int4|v1",
        speed - half, speed + half,
    )  # fmt: skip
    made = records.record(record.point["method"], record.point["bits"], kind="timing",
                          metrics=[metric])  # fmt: skip
    made.point |= {"engine": "torch_int4", "threads": 2, "device": device}
    made.run_id = records.identifier(record.run_id, device)
    return made


FULL = records.record("full_precision", None, None, None, metrics=[quality(1.0, 1e-9), size(10)])


def ask(rows: list[Record], **question: object) -> Answer:
    (answer,) = answers(frame([FULL, *rows]), Question(**question))  # type: ignore[arg-type]
    return answer


def order(answer: Answer) -> list[str]:
    return [f"{c.row['method']}{c.row['bits']}" for c in answer.passing]


KEEP_90 = Acceptance(keep={"": 0.9})


def test_under_a_limit_on_quality_the_smallest_file_comes_first() -> None:
    answer = ask([point("rtn", 8, 0.99, 6), point("rtn", 4, 0.95, 3)], line=KEEP_90)
    assert (answer.best, order(answer)) == ("size", ["rtn4", "rtn8"])


def test_under_a_limit_on_size_the_best_quality_comes_first() -> None:
    line = Acceptance(file=Amount(0.7, relative=True))
    answer = ask([point("rtn", 8, 0.99, 6), point("rtn", 4, 0.95, 3)], line=line)
    assert (answer.best, order(answer)) == ("quality", ["rtn8", "rtn4"])


def test_qualities_within_noise_are_tied_and_the_smaller_is_preferred() -> None:
    rows = [point("rtn", 8, 0.990, 6, half=0.003), point("rtn", 4, 0.986, 3, half=0.003)]
    answer = ask([*rows, point("rtn", 3, 0.95, 2, half=0.003)], line=Acceptance(file=Amount(9.0)))
    assert order(answer) == ["rtn4", "rtn8", "rtn3"]  # 0.989 of rtn4 reaches 0.987 of rtn8
    assert answer.tied == 2


def test_sizes_within_one_per_cent_are_equal_and_quality_decides() -> None:
    rows = [point("rtn", 4, 0.95, 3.00), point("gptq", 4, 0.97, 3.02), point("hqq", 4, 0.99, 3.04)]
    assert order(ask(rows, line=KEEP_90)) == ["gptq4", "rtn4", "hqq4"]  # 3.04 is 1.3 % larger


def test_of_points_alike_in_size_and_quality_the_faster_is_preferred() -> None:
    slow, fast = point("rtn", 4, 0.951, 3, half=0.01), point("gptq", 4, 0.950, 3, half=0.01)
    answer = ask([slow, fast, timed(slow, 1.2), timed(fast, 1.8)], line=KEEP_90)
    assert order(answer) == ["gptq4", "rtn4"]


@pytest.mark.parametrize(
    ("half", "sure", "passing", "verdict"),
    [
        (0.001, False, 1, "yes"),  # 0.909 to 0.911
        (0.020, False, 1, "likely"),  # 0.890 to 0.930 reaches below
        (0.020, True, 0, "likely"),
    ],
)
def test_sure_asks_for_the_whole_interval(half, sure, passing, verdict) -> None:
    answer = ask([point("rtn", 4, 0.91, 3, half=half)], line=KEEP_90, sure=sure)
    assert len(answer.passing) == passing
    assert (answer.passing or answer.near)[0].verdict == verdict


def test_what_was_not_timed_can_not_pass_a_limit_on_speed() -> None:
    rows = [point("rtn", 4, 0.95, 3), point("gptq", 4, 0.97, 3)]
    answer = ask([*rows, timed(rows[0], 1.8)], line=Acceptance(speedup=1.5))
    assert order(answer) == ["rtn4"]
    assert answer.unmeasured == {"latency": (1, "not timed; probes=latency does")}


def test_of_several_tasks_the_one_that_lost_most_is_shown() -> None:
    """BLEU 90 - 0.1, 90 - 1.5 and 90 + 0.2, all within a limit of 2."""
    losses = {"a": -0.1, "b": -1.5, "c": 0.2}
    scores = [
        Metric(
            f"bleu/{task}", 90 + loss, "", "higher", "bleu|v1",
            delta=Delta("difference", loss, loss - 0.1, loss + 0.1),
        )
        for task, loss in losses.items()
    ]  # fmt: skip
    full = [replace(score, value=90.0, delta=Delta("difference", 0, 0, 0)) for score in scores]
    rows = [
        records.record("full_precision", None, None, None,
                       metrics=[quality(1.0, 1e-9), size(10), *full]),
        records.record("rtn", 4, metrics=[quality(0.99), size(3), *scores]),
    ]  # fmt: skip
    (answer,) = answers(frame(rows), Question(line=Acceptance(drop={"bleu": Amount(2.0)})))
    assert dict(columns(answer, answer.passing))["bleu lower by"] == ["1.500"]


def test_the_counts_say_which_limit_leaves_out_most() -> None:
    rows = [point("rtn", b, kept, mib) for b, kept, mib in ((8, 0.99, 9), (4, 0.8, 5), (3, 0.7, 3))]
    refused = records.record("rtn", 4, 48, status="refused", reason="no")
    failed = records.record("rtn", 2, 32, status="failed", reason="no")
    line = Acceptance(keep={"": 0.9}, file=Amount(6.0))
    answer = ask([*rows, refused, failed], line=line)
    assert (answer.considered, answer.passing) == (3, ())
    assert answer.left_out == {"keep": 2, "file": 1}
    assert answer.aside == {"full precision": 1, "refused": 1, "failed": 1}


def test_where_none_passes_each_limit_says_how_far_it_would_have_to_move() -> None:
    """rtn8 breaks the size alone (8 of 6 MiB), rtn4 the quality alone (0.85 of 0.9)."""
    rows = [point("rtn", 8, 0.99, 8), point("rtn", 4, 0.85, 5), point("rtn", 3, 0.5, 7)]
    answer = ask(rows, line=Acceptance(keep={"": 0.9}, file=Amount(6.0)))
    found = {r.check.name: (r.by.row["bits"], r.check.found.value) for r in answer.relaxed}
    assert found == {"keep": (4, pytest.approx(0.85)), "file": (8, 8.0)}
    assert [c.row["bits"] for c in answer.near] == [4, 8, 3]  # 6 % off, 33 % off, two limits


def test_without_any_limit_99_per_cent_of_quality_are_to_be_kept() -> None:
    answer = ask([point("rtn", 8, 0.999, 6), point("rtn", 4, 0.95, 3)])
    assert answer.line.keep == {"": 0.99}
    assert order(answer) == ["rtn8"]


def test_a_model_without_quality_is_ranked_by_what_it_has() -> None:
    rows = [records.record("rtn", bits, metrics=[size(mib)]) for bits, mib in ((8, 6), (4, 3))]
    answer = ask_without_full(rows)
    assert (answer.best, order(answer)) == ("size", ["rtn4", "rtn8"])
    answer = ask_without_full([*rows, timed(rows[0], 1.3)])
    assert (answer.best, order(answer)[0]) == ("speed", "rtn8")


def ask_without_full(rows: list[Record]) -> Answer:
    (answer,) = answers(frame(rows), Question())
    return answer


def test_seeds_of_one_point_stand_beside_it() -> None:
    rows = [point("gptq", 4, kept, 3, seed=seed) for seed, kept in ((0, 0.95), (1, 0.97))]
    answer = ask([*rows, point("rtn", 4, 0.94, 3)], line=KEEP_90)
    assert order(answer) == ["gptq4", "gptq4", "rtn4"]
    assert answer.passing[0].seeds == pytest.approx((0.95, 0.97))
    assert answer.passing[2].seeds == ()


def test_one_point_in_two_experiments_is_one_candidate_with_the_numbers_of_both() -> None:
    judged = point("rtn", 4, 0.95, 3)
    clock = timed(judged, 1.8)
    clock.experiment = "latency"
    answer = ask([judged, clock], line=Acceptance(keep={"": 0.9}, speedup=1.5))
    assert answer.considered == 1
    assert answer.passing[0].speed.value == 1.8


def test_each_model_has_its_own_answer() -> None:
    other = point("rtn", 4, 0.8, 3, model="other")
    found = answers(frame([FULL, point("rtn", 4, 0.95, 3), other]), Question(KEEP_90))
    assert {a.model: len(a.passing) for a in found} == {"reference": 1, "other": 0}


def test_where_narrows_the_points() -> None:
    rows = [point("rtn", 4, 0.95, 3), point("gptq", 4, 0.96, 3), point("gptq", 8, 0.99, 6)]
    answer = ask(rows, line=KEEP_90, where={"method": ("gptq",), "bits": ("8", "3")})
    assert order(answer) == ["gptq8"]


# ------------------------------------------------------------------------------- limits as typed


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("3.5GiB", Amount(3.5 * 1024)),
        ("900MB", Amount(900e6 / 2**20)),
        ("900 mb", Amount(900e6 / 2**20)),
        ("0.5x", Amount(0.5, relative=True)),
        (".4x", Amount(0.4, relative=True)),
        ("1048576B", Amount(1.0)),
    ],
)
def test_sizes_are_read_with_their_unit(text: str, amount: Amount) -> None:
    assert limits.amount("--max-bytes", text) == amount


def test_shares_and_drops_are_read() -> None:
    assert (limits.share("0.9"), limits.share("90%"), limits.share("1")) == (0.9, 0.9, 1.0)
    assert limits.drops("bleu=1,ppl=5%") == {"bleu": Amount(1.0), "ppl": Amount(5.0, True)}


def test_a_line_of_ones_own_is_a_yaml(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("drop: {bleu: 1, ppl: 5%}\nkeep: {acc: 0.98}\nspeedup: 1.5\nfile: 0.5x\n")
    assert limits.preset(str(path)) == Acceptance(
        "mine",
        {"bleu": Amount(1.0), "ppl": Amount(5.0, True)},
        {"acc": 0.98},
        1.5,
        None,
        Amount(0.5, True),
    )
    path.write_text("keep: {acc: 2}\n")
    with pytest.raises(UserError, match=r"mine\.yaml: keep acc 2: takes a share"):
        limits.preset(str(path))
    path.write_text("drop: {bleu: x}\n")
    with pytest.raises(UserError, match=r"mine\.yaml: drop bleu=x: takes METRIC"):
        limits.preset(str(path))
    path.write_text("speed: 2\n")
    with pytest.raises(UserError, match="speed: no such limit; did you mean speedup"):
        limits.preset(str(path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "recommend: takes the NAME of an experiment"),
        (["nothere"], "recommend nothere: no Records in"),
        (["demo", "--max-bytes", "banana"], "--max-bytes banana: takes a size as 3.5GiB"),
        (["demo", "--max-bytes", "0.5"], "did you mean 0.5x?"),
        (["demo", "--max-memory", "900"], "did you mean 900MiB?"),
        (["demo", "--keep", "90"], "--keep 90: takes a share over 0 and up to 1; for 90 per cent"),
        (["demo", "--keep", "much"], "--keep much: takes a share"),
        (["demo", "--keep", "101%"], "takes a share over 0 and up to 1\n"),
        (["demo", "methods"], "two protocols meet for model=reference"),
        (["demo", "methods"], "take them one at a time: demo, then methods"),
        (["demo", "--where", "recover=x"], "not in these Records; none has a value of recover"),
        (["demo", "--min-speedup", "fast"], "--min-speedup fast: takes a number over 0"),
        (["demo", "--max-drop", "bleu"], "--max-drop bleu: takes METRIC=POINTS"),
        (["demo", "--max-drop", "blue=1"], "--max-drop blue: not in these Records; did you mean"),
        (["demo", "--metric", "chrf"], "--metric chrf: not in these Records"),
        (["demo", "--metric", "kl_mean"], "--metric kl_mean: is a distance"),
        (["demo", "--preset", "article"], "no such preset; did you mean articles"),
        (["demo", "--best", "cheap"], "--best cheap: takes one of size, quality, speed, memory"),
        (["demo", "--where", "bitz=3"], "--where bitz: no such column; did you mean bits"),
        (["demo", "--where", "bits=5"], "--where bits=5: not in these Records; there are 2, 3, 4"),
        (["demo", "--method", "nope"], "--method nope: not in these Records; there are"),
        (["demo", "--top", "0"], "--top 0: takes a whole number from 1"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_option(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--results-dir", str(RESULTS)]
    assert cli.dispatch(["recommend", *arguments, *where]) == cli.MISTAKE
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.count("\n") == 1
    assert said.out == ""


# --------------------------------------------------------------------------- on committed results


def recommended(
    capsys: pytest.CaptureFixture[str], *arguments: str, results: Path = RESULTS
) -> tuple[int, str]:
    code = cli.dispatch(["recommend", *arguments, "--results-dir", str(results)])
    said = capsys.readouterr()
    assert said.err == ""
    return code, said.out


def test_the_demo_recommends_what_its_records_say(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = recommended(capsys, "demo", "--max-bytes", "0.5x", "--keep", "0.99", "--json")
    assert code == cli.OK
    (model,) = json.loads(out)["models"]
    small = {}
    for record in Store(RESULTS / "demo").records():
        if record.kind == "quality" and record.point["method"] != "full_precision":
            ppl, mib = record.metrics["ppl/in_domain"], record.metrics["file_mib"]
            if 1 / ppl.delta.value >= 0.99 and mib.delta.value <= 0.5:
                small[record.run_id] = mib.value
    assert model["passing"] == len(small)
    assert small[model["points"][0]["run_id"]] <= 1.01 * min(small.values())
    assert all(p["checks"] and p["passes"] and p["again"] for p in model["points"])


def test_the_page_says_what_to_type_and_exits_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    code, out = recommended(capsys, "demo", "--keep", "0.95", "--min-speedup", "1.5")
    assert code == cli.OK
    lines = dict(line.split(maxsplit=1) for line in out.splitlines() if line[:1].isalpha())
    assert "passes surely" in lines["take"]
    words = shlex.split(lines["export"].partition("   (")[0])
    assert words[:2] == ["bitsweep", "export"]
    assert words[words.index("--to") + 1] in names()
    (found,) = Store(RESULTS / "demo").find(words[2])
    assert str(found.provenance["command"]) == lines["again"]


def test_the_articles_line_fails_on_the_demo_by_latency_and_exits_with_1(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its model is 3.7 M parameters in cache: the fastest point decodes 1.58 times bf16."""
    code, out = recommended(capsys, "demo", "--preset", "articles")
    assert code == 1
    assert "no point passes" in out
    fastest = max(
        m.value
        for r in Store(RESULTS / "demo").records()
        if (m := r.metrics.get("decode_vs_bf16"))
        and m.value
        and r.point["method"] != "full_precision"
    )
    assert f"--min-speedup {int(fastest * 1000) / 1000:g} would let" in out


def test_random_weights_are_not_exported_and_the_keys_for_ones_own_are_told(
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, out = recommended(capsys, "latency", "--min-speedup", "2")
    assert code == cli.OK
    assert "no perplexity was measured here" in out
    assert "bitsweep export model.path=FOLDER method=rtn" in out
    assert "marked in cache" in out


@pytest.mark.parametrize(
    "name", sorted(path.parent.name for path in RESULTS.glob("*/records") if any(path.iterdir()))
)
def test_every_committed_experiment_has_an_answer(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out = recommended(capsys, name)
    assert code in (cli.OK, 1)
    assert "nan" not in out.lower().split()
    assert "None" not in out


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from bitsweep import cli; "
        f"code = cli.dispatch(['recommend', 'demo', '--results-dir', {str(RESULTS)!r}]); "
        "heavy = {'torch', 'transformers', 'wandb', 'plotly', 'matplotlib'} & set(sys.modules); "
        "assert not heavy, heavy; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------ what docs show

ROOT = Path(__file__).parents[1]
TRANSCRIPTS = re.findall(
    r"```console\n\$ (bitsweep recommend [^\n]+)\n(.*?)```",
    (ROOT / "docs" / "recommend.md").read_text(encoding="utf-8"),
    re.DOTALL,
)
README = re.findall(
    r"^bitsweep (recommend [^#\n]+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE
)


def test_the_docs_have_transcripts() -> None:
    assert len(TRANSCRIPTS) >= 5


@pytest.mark.parametrize(("command", "shown"), TRANSCRIPTS, ids=[c for c, _ in TRANSCRIPTS])
def test_a_transcript_of_the_docs_is_what_the_committed_records_give(
    command: str, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    cli.dispatch(shlex.split(command)[1:])
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize("command", README)
def test_the_readmes_questions_have_an_answer(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["demo" if word == "mine" else word for word in shlex.split(command)[1:]]
    code, _ = recommended(capsys, *words)
    assert code in (cli.OK, 1)


# --------------------------------------------------------------------------------- how it leaves

QUICK = ["data=text", "data.path=measured.txt", "data.calibration_path=calibrating.txt",
         "data.window=32", "calibration.windows=4", "tracker=none"]  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["method=rtn", "bits=4"], "compressed-tensors"),
        (["method=gptq", "bits=3", "group_size=32"], "compressed-tensors"),
        (["method=rtn", "bits=4", "input.bits=8"], "compressed-tensors"),
        (["method=hqq", "bits=4"], "hf-dense"),  # real zeros
        (["method=rtn", "bits=4", "format=nf"], "hf-dense"),
        (["method=rtn", "bits=4", "policy=all"], "onnx"),  # a quantized embedding
        (["method=rtn", "bits=3", "policy=all"], "hf-dense"),
        (["method=rtn", "bits=4", TWO_KINDS], "gptq"),  # two kinds with zeros
        (["method=rtn", "bits=4", TWO_KINDS, "symmetric=true"], "compressed-tensors"),
        (["method=rtn", "bits=4", TWO_KINDS, "input.bits=8"], "onnx"),
        (
            [
                "method=rtn",
                "bits=4",
                "input.bits=8",
                "input.range=minmax",
                "input.per=tensor",
                "group_size=-1",
            ],
            "onnx",
        ),
        (["method=rtn", "bits=3", "input.bits=8", "input.range=minmax", "input.per=tensor"], None),
        (["method=rtn", "bits=4", "format=nf", "input.bits=8"], None),  # floats have no inputs
        (["method=rtn", "bits=4", "input=adaptive"], None),
    ],
)
def test_the_format_that_is_named_holds_the_point_and_an_earlier_one_does_not(
    keys: list[str], expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    artifacts: Artifacts,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    lay(tmp_path)
    prepared = _prepared(
        job(compose(["model.path=llama", *QUICK, "group_size=64", *keys])), artifacts
    )
    plan = {name: str(spec) for name, spec in prepared.plan.layers.items()}
    chosen = leaving(prepared.point.columns(), plan)
    assert chosen.format == expected, chosen
    model = skeleton(prepared.source, artifacts)
    for name in ("compressed-tensors", "gptq"):  # in the order of preference
        reason = contents.refused(model, containers()[name](), prepared.plan)
        assert (reason is None) == (name == expected)
        if name == expected:
            break


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (["method=gptq", "bits=4"], "compressed-tensors"),
        (["transforms=[rotate]", "method=rtn", "bits=4"], "compressed-tensors"),
        (["transforms=[smooth]", "method=rtn", "bits=4", TWO_KINDS], "gptq"),
        (["transforms=[prune]", "method=rtn", "bits=3"], "hf-dense"),
        (["method=gptq", "bits=4", "method.act_order=true", "method.static_groups=false"], "gptq"),
        (["method=hqq", "bits=4"], "hf-dense"),
        (["transforms=[low_rank]", "method=rtn", "bits=4", "misfit=per_channel"], None),
        (["method=rtn", "bits=4", "recover=[low_rank]"], None),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else str(value),
)
def test_what_is_printed_for_a_measured_point_can_be_typed(
    keys: list[str], expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    desk = lay(tmp_path)
    assert desk("run", "results_dir=results", "group_size=32", *keys) == cli.OK
    capsys.readouterr()
    assert cli.dispatch(["recommend", "adhoc", "--keep", "0.01", "--json"]) == cli.OK
    (found,) = json.loads(capsys.readouterr().out)["models"]
    (chosen,) = found["points"]
    if expected is None:
        assert chosen["export"] is None
        assert chosen["export_note"]
        return
    words = shlex.split(chosen["export"])
    assert words[-2:] == ["--to", expected]
    assert cli.dispatch(words[1:]) == cli.OK
    assert "next    bitsweep run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"weights": "random"}, "random"),
        ({"kv": "w4"}, "kv.bits=16"),
        ({"method": "torchao"}, "torchao's own"),
        ({"recover": "low_rank (rank=16)"}, "low rank"),
        ({"transforms": "low_rank (keep=0.5)"}, "factors"),
    ],
)
def test_what_no_format_holds_says_why(changes: dict[str, str], word: str) -> None:
    found = leaving({"method": "rtn", **changes}, {"a": "w4g64"})
    assert found.format is None
    assert word in found.note


@pytest.mark.parametrize("method", sorted(path.stem for path in (CONF / "method").glob("*.yaml")))
def test_a_records_words_and_the_methods_own_specs_agree_on_zeros(method: str) -> None:
    """A name of a layer (``w4g64``) does not say whether its zeros are codes or real numbers."""
    point = job(compose([f"method={method}", "bits=4", "group_size=64"])).point
    made = point.method.resolve(point.spec)
    if "policy" in point.method.ignores or method in LIBRARIES:
        return
    chosen = leaving({"method": method}, {"model.layers.0.mlp.up_proj": str(made)})
    packed = made.format == "int" and made.zero == "integer" and made.bits in (2, 3, 4, 8)
    assert chosen.packed == packed, chosen


@pytest.mark.parametrize(
    ("changes", "plan", "expected"),
    [
        ({"transforms": "prune (sparsity=0.5)"}, {"q": "w4g64"}, "onnx"),  # zeros as codes
        ({"recover": "prune (structure=2:4)"}, {"q": "w3g64"}, "hf-dense"),
        ({"method_options": "static_groups=False"}, {"q": "w4g64"}, "gptq"),
        ({}, {"transformer.h.0.attn.c_attn": "w4g64"}, "gptq"),  # a Conv1D
        ({"misfit": "ragged", "misfits": "q: 2 of 3"}, {"q": "w4g64"}, "onnx"),
        ({"misfit": "ragged", "misfits": "q: 2 of 3"}, {"q": "w3g64"}, "hf-dense"),
        ({"misfit": "ragged", "misfits": "k: 2 of 3"}, {"q": "w4g64"}, "compressed-tensors"),
        ({"plan": "w4g64 x7", "policy": "uniform"}, {}, "compressed-tensors"),  # no details
        ({"plan": "w4g64 x7, w8 x2", "policy": "by_role"}, {}, "onnx"),
    ],
)
def test_what_a_record_says_beside_the_specs_decides_as_well(
    changes: dict[str, str], plan: dict[str, str], expected: str
) -> None:
    assert leaving({"method": "gptq", **changes}, plan).format == expected


def test_where_speed_was_asked_the_runtime_that_was_timed_decides() -> None:
    row = {"method": "rtn", "engine": "openvino"}
    assert leaving(row, {"a": "w4g64"}).format == "compressed-tensors"
    assert leaving(row, {"a": "w4g64"}, fast=True).format == "openvino"


def laid(tmp_path: Path, *rows: Record) -> Path:
    """The experiment ``mine`` of these points, beside full precision."""
    store = Store(tmp_path / "mine")
    store.prepare()
    for record in (FULL, *rows):
        store.put(record, [])
    return tmp_path


def test_a_name_is_never_broken_however_many_columns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = point("rtn", 4, 0.97, 3, method_options="iterations=50 lr=0.005 " * 8)
    _, out = recommended(capsys, "mine", "--keep", "0.5", results=laid(tmp_path, long))
    (line,) = (line for line in out.splitlines() if line.startswith("1  rtn"))
    assert line.endswith("surely")


def test_a_narrow_interval_is_shown_with_its_width(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = point("rtn", 8, 1.00001, 6, half=0.00003)
    _, out = recommended(capsys, "mine", "--keep", "1", results=laid(tmp_path, rows))
    assert "1.00001 [0.99998, 1.00004]" in out


def test_nothing_passes_surely_where_nothing_was_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bare = records.record("rtn", 4, metrics=[size(3)])
    store = Store(tmp_path / "bare")
    store.prepare()
    store.put(bare, [])
    _, out = recommended(capsys, "bare", results=tmp_path)
    assert "  surely" not in out
    assert "nothing was asked of it" in out


def test_a_choice_among_many_is_said_to_be_less_sure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """0.9 is 1.2 half-widths below: within a 95 % interval, but not within one that is 1.14 times
    as wide (of 2 points: z = 2.24) and 1.22 times (of 3: z = 2.39).
    """
    near = point("gptq", 4, 0.912, 3, half=0.010)
    others = [point("rtn", bits, 0.5, 9) for bits in (8, 3)]
    results = laid(tmp_path, near, *others[:1])
    _, out = recommended(capsys, "mine", "--keep", "0.9", results=results)
    assert "surely also with intervals 1.14 times as wide, as a choice among 2 points" in out
    _, out = recommended(capsys, "mine", "--keep", "0.9", results=laid(tmp_path, near, *others))
    assert "surely taken alone; not with intervals 1.22 times as wide, as a choice among 3" in out


def test_the_limit_of_a_file_is_moved_by_the_options_that_name_its_metric(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = laid(tmp_path, point("rtn", 4, 0.97, 3))
    line = tmp_path / "line.yaml"
    line.write_text("keep: {ppl: 0.99}\n")
    code, out = recommended(capsys, "mine", "--preset", str(line), results=results)
    assert code == 1
    (moved,) = (shlex.split(found) for found in re.findall(r"^relax +(.*) would let", out, re.M))
    assert moved[:3] == ["--metric", "ppl", "--keep"]
    code, _ = recommended(capsys, "mine", "--preset", str(line), *moved, results=results)
    assert code == cli.OK


def test_the_nearest_that_was_never_timed_comes_with_its_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    untimed = point("rtn", 4, 0.97, 3)
    command = "bitsweep run method=rtn bits=4 probes=quality probes.perplexity.tokens=64"
    untimed.provenance["command"] = command
    code, out = recommended(capsys, "mine", "--min-speedup", "1", results=laid(tmp_path, untimed))
    assert code == 1
    assert "measure bitsweep run method=rtn bits=4 probes=latency\n" in out


def test_the_quality_that_is_shown_is_explained_beside_the_one_that_was_asked_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.yaml").write_text("keep: {acc: 0.9}\n")
    limit = ["--preset", str(tmp_path / "mine.yaml")]
    assert cli.dispatch(["recommend", "demo", "--results-dir", str(RESULTS), *limit]) == cli.OK
    said = capsys.readouterr().out
    assert "of the quality, by ppl/in_domain" in said
    assert "kept = ppl/in_domain of full precision / of the point" in said
    assert "kept = acc/reference_questions of the point / of full precision" in said


def test_a_time_of_another_machine_is_said_to_be_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [point("rtn", 8, 0.99, 6), point("rtn", 4, 0.97, 3), point("gptq", 4, 0.98, 3)]
    clocks = [timed(rows[0], 1.2), timed(rows[1], 1.4), timed(rows[2], 1.9, device="server")]
    store = Store(tmp_path / "two")
    store.prepare()
    for record in (FULL, *rows, *clocks):
        store.put(record, [])
    code, out = recommended(capsys, "two", "--min-speedup", "1.5", results=tmp_path)
    assert code == cli.OK
    assert "1.90 [1.89, 1.91] elsewhere" in out
    assert "timed on another machine (server, 2 threads)" in out


def test_a_record_full_of_markup_is_printed_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = "[bold]<script>[/nope]"
    store = Store(tmp_path / "odd")
    store.prepare()
    for record in (FULL, point("rtn", 4, 0.99, 3, policy=odd)):
        store.put(record, [])
    code, out = recommended(capsys, "odd", "--keep", "0.5", results=tmp_path)
    assert code == cli.OK
    assert out.count(odd) >= 2


def test_of_one_point_timed_in_two_experiments_the_faster_counts() -> None:
    for speeds in ((1.5, 2.5), (2.5, 1.5)):
        found = []
        for experiment, speed in zip(("a", "b"), speeds, strict=True):
            own = point("rtn", 4, 0.99, 2.0)
            for row in (own, timed(own, speed)):
                row.experiment = experiment
                row.run_id = records.identifier(row.run_id, experiment)
                found.append(row)
        assert ask(found, best="speed").passing[0].speed.value == 2.5


def test_a_memory_is_ranked_in_mib() -> None:
    assert ask([point("rtn", 4, 0.99, 2.0)], best="memory").passing[0].memory.value == 2.0


def test_of_points_alike_in_memory_the_better_quality_is_preferred() -> None:
    better, faster = point("gptq", 4, 0.99, 2.0), point("rtn", 4, 0.95, 2.0)
    rows = [better, timed(better, 1.2), faster, timed(faster, 2.4)]
    assert order(ask(rows, best="memory", line=KEEP_90)) == ["gptq4", "rtn4"]


def test_a_quality_of_several_metrics_is_unknown_where_one_was_not_measured() -> None:
    lacking = point("rtn", 4, 0.99, 2.0)
    both = point("gptq", 4, 0.98, 2.0)
    both.metrics["top1/t"] = records.number("top1/t", 0.9)
    found = ask([lacking, both], metrics=("ppl", "top1"), line=Acceptance(file=Amount(9.0)))
    known = {c.row["method"]: c.quality.value for c in found.passing}
    assert known == {"rtn": None, "gptq": pytest.approx(0.9)}
