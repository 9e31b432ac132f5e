"""`dspark bench generate`: the whole file, and its refusals."""

import json

import pytest

LINES = [
    {"turns": ["Name three colours.", "Now four."]},
    {"messages": [{"role": "user", "content": "Say hello."}, {"role": "assistant", "content": "Hello."}]},
    {"turns": ["Count."]},
]


@pytest.fixture
def data(tmp_path) -> str:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in LINES))
    return str(path)


@pytest.fixture
def bench(dspark, models, tmp_path):
    def run(*options: str) -> tuple[dict, str]:
        out = tmp_path / "out" / "result.json"
        outcome = dspark("bench", "generate", *models, "--json", out, "--max-new-tokens", "12", *options)
        assert outcome.code == 0, outcome.err
        return json.loads(out.read_text()), outcome.out

    return run


def test_float32_greedy(bench, data):
    result, printed = bench("--data", data, "--dtype", "float32", "--no-lookup")
    assert (result["num_prompts"], result["identical"]["fraction"], result["identical"]["differences"]) == (3, 1.0, [])
    assert result["plain"]["tokens"] == result["speculative"]["tokens"] <= 36
    assert len(result["calls"]) == 3
    assert set(result["plain_dtypes"]) == {"float32", "bfloat16"}
    assert sum(result["time_share"].values()) == pytest.approx(1.0)
    assert all(share > 0 for share in result["time_share"].values())
    assert result["tau"] >= 1.0
    assert result["ratio"]["total"] == pytest.approx(
        result["speculative"]["tokens_per_second"] / result["plain"]["tokens_per_second"]
    )
    assert result["provenance"]["machine"]["device"] == "cpu"
    assert f"tau (tokens per round) │ {result['tau']:.3f}" in printed
    assert "3 of 3 prompts" in printed
    efficiency = result["efficiency"]
    assert efficiency["median"] == pytest.approx(sorted(efficiency["calls"])[1]) and len(efficiency["calls"]) == 3
    assert f"efficiency │ {efficiency['median']:.2f} median; in plain steps, alone: verification " in printed


def test_batches_are_counted_by_prompt(bench, data):
    result, _ = bench("--data", data, "--dtype", "float32", "--batch-size", "2", "--dtype-prompts", "0")
    assert (result["num_prompts"], len(result["calls"])) == (3, 2)
    assert (result["identical"]["num_prompts"], result["identical"]["num_identical"]) == (3, 3)


def test_tau_only_leaves_plain_runs_out(bench, data):
    result, printed = bench("--data", data, "--tau-only", "--limit", "2")
    assert result["num_prompts"] == 2
    assert result["plain"] is result["ratio"] is result["identical"] is None
    assert "plain_dtypes" not in result and "efficiency" not in result
    assert "plain generate()" not in printed


def test_sampling_repeats_with_its_seed(bench, data):
    options = ["--data", data, "--temperature", "1.0", "--tau-only"]
    first, again, other = bench(*options)[0], bench(*options)[0], bench(*options, "--seed", "7")[0]
    assert first["tau"] == again["tau"]
    assert [call["tau"] for call in first["calls"]] != [call["tau"] for call in other["calls"]]


def test_sampled_ids_are_not_compared(bench, data):
    result, _ = bench("--data", data, "--temperature", "1.0", "--dtype-prompts", "0")
    assert result["identical"] is None
    assert result["ratio"]["total"] > 0
    assert "plain_dtypes" not in result


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "nothing.jsonl"), ("{broken\n", "line 1"), ("\n", "no conversations"), ('{"text": "a"}\n', "line 1")],
)
def test_bad_data_is_one_line_and_code_2(dspark, models, tmp_path, text, message):
    path = tmp_path / "nothing.jsonl"
    if text is not None:
        path.write_text(text)
    outcome = dspark("bench", "generate", *models, "--data", path)
    assert outcome.code == 2
    assert outcome.err.startswith("error: ")
    assert message in outcome.err


def test_unwritable_output_is_refused_before_the_work(dspark, data, tmp_path):
    folder = dspark("bench", "generate", "--data", data, "--json", tmp_path, "--target", "/no/such")
    assert folder.code == 2
    assert "is a folder. Add a file name." in folder.err
    under_a_file = dspark("bench", "generate", "--data", data, "--json", f"{data}/result.json", "--target", "/no/such")
    assert under_a_file.code == 2
    assert "--json cannot be written" in under_a_file.err


@pytest.mark.slow
def test_embedded_pair_is_exact_and_useful(dspark, data, tmp_path):
    out = tmp_path / "result.json"
    outcome = dspark(
        "bench", "generate", "--data", data, "--dtype", "float32", "--max-new-tokens", "64", "--json", out
    )
    assert outcome.code == 0, outcome.err
    result = json.loads(out.read_text())
    assert result["identical"]["fraction"] == 1.0
    assert result["tau"] > 1.5
