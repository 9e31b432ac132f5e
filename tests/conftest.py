"""What every test shares: no network, one thread, fixed seeds, the same environment, a tiny real target on disk."""

import os

# What a machine sets for other programs: proxies, which would stand between tests and their own servers; the Hub's
# and trainers' settings; a launcher's ranks; colours and widths of terminals; windows to draw in.
OF_OTHERS = ("HF_", "HUGGING", "TRANSFORMERS_", "ACCELERATE_", "FSDP_", "OPENAI_", "TYPER_", "_TYPER_", "JUPYTER_",
             "TTY_", "CLICOLOR", "DSPARK_HF_")  # fmt: skip
OF_OTHERS_TOO = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "COLUMNS",
                 "LINES", "TERMINAL_WIDTH", "NO_COLOR", "FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS",
                 "MPLBACKEND"}  # fmt: skip
for name in list(os.environ):
    is_of_others = name.startswith(OF_OTHERS) or name in OF_OTHERS_TOO or name.lower().endswith("_proxy")
    if is_of_others and name != "HF_HOME":
        del os.environ[name]
os.environ["HF_HUB_OFFLINE"] = "1"
# Servers of the tests are slow where the machine is busy.
os.environ["HF_HUB_ETAG_TIMEOUT"] = os.environ["HF_HUB_DOWNLOAD_TIMEOUT"] = "300"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Triton reads this when it is first imported, by whichever test. Dispatch takes no kernel on a CPU until it is asked
# to; on a machine with a GPU, TRITON_INTERPRET=0 tests the compiled kernels.
os.environ.setdefault("TRITON_INTERPRET", "1")

import gc
import sys
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

sys.path.append(str(Path(__file__).parent))

from hub_server import HubServer

# The same examples on every machine, however slow it is; searches for new ones say `derandomize=False`.
hypothesis.settings.register_profile(
    "everywhere", derandomize=True, database=None, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
)
hypothesis.settings.load_profile("everywhere")

# One token per byte, then the special ones.
PAD_ID, EOS_ID, MASK_ID = 256, 257, 258
VOCAB_SIZE = 260
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'][0] }}:{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


def pytest_collection_finish():
    # What was imported stays to the end. Looking through all of it again and again took a twentieth of the time.
    gc.collect()
    gc.freeze()


def pytest_unconfigure():
    # Or triton calls it a leak.
    gc.unfreeze()


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def whole_blocks(request, monkeypatch):
    """More tokens cost nothing, so that all slots are verified and much is tested; not in tests marked `cost`."""
    if "cost" not in request.keywords:
        for name in ("_TOKENS_OF_CORE", "_TOKENS_OF_NARROW_CORE"):
            monkeypatch.setattr(f"dspark_hf.generation.lengths.step_cost.{name}", 10**6)
        for name in ("_ANY_MORE", "_ANY_MORE_FLOAT32", "_EACH_MORE_EMULATED"):
            monkeypatch.setattr(f"dspark_hf.generation.lengths.step_cost.{name}", 0.0)


@pytest.fixture(autouse=True)
def no_clock(request, monkeypatch):
    """What rounds took does not correct what they cost, so that all runs are alike; but in tests marked `clock`."""
    if "clock" not in request.keywords:
        monkeypatch.setattr("dspark_hf.generation.lengths.cost_log._LEAST_LEFT", 10**9)
        monkeypatch.setattr("dspark_hf.generation.lengths.cost_log._MIN_TIMES", 10**9)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    # Tiny models run slower on several threads, and test workers share the cores.
    torch.set_num_threads(1)


@pytest.fixture
def kernels(monkeypatch):
    """Ops run their kernels, in Triton's interpreter where there is no GPU."""
    pytest.importorskip("triton")
    monkeypatch.setenv("DSPARK_HF_KERNELS", "triton")


def make_tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: any text goes in and comes out again."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {symbol: index for index, symbol in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<eos>", "<mask>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", chat_template=CHAT_TEMPLATE
    )


def make_tiny_target() -> LlamaForCausalLM:
    """A random Llama of four layers, in evaluation mode."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    return make_tiny_tokenizer()


@pytest.fixture(scope="session")
def tiny_target_dir(tmp_path_factory) -> str:
    """Folder of a tiny target with its tokenizer, as `from_pretrained` reads it."""
    folder = tmp_path_factory.mktemp("target") / "tiny-target"
    make_tiny_target().save_pretrained(folder)
    make_tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_drafter_dir(tmp_path_factory, tiny_target_dir) -> str:
    """Folder of a random drafter that was made for the tiny target."""
    from dspark_hf.modeling import DSparkModel

    target = LlamaForCausalLM.from_pretrained(tiny_target_dir)
    drafter = DSparkModel.from_target(
        target, target_layer_ids=[0, 2], mask_token_id=MASK_ID, markov_rank=8, block_size=4
    )
    folder = tmp_path_factory.mktemp("drafter") / "tiny-drafter"
    drafter.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub of this test's own, which this process's clients talk to, logged in as a user who may write.

    `hub.environment(home)` has the variables for another process, `hub.log_in(monkeypatch, token)` changes the user.
    """
    server = HubServer().start()
    server.use(monkeypatch, tmp_path / "hub-cache")
    yield server
    server.stop()


@dataclass(frozen=True)
class Outcome:
    """What a command printed and how it ended; whitespace is collapsed, because tables and errors wrap."""

    code: int
    out: str
    err: str


@pytest.fixture
def dspark(monkeypatch):
    """Call `dspark(*arguments)` as the shell would, in this process."""
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> Outcome:
        from dspark_hf.cli.main import app

        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Outcome(result.exit_code, " ".join(result.stdout.split()), " ".join(result.stderr.split()))

    return run
