"""What looks like a secret is found in every text of an upload; what only looks random is not."""

import json
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dspark_hf.publishing.secrets import check_no_secrets

HUB, SHA = "hf_" + "aB3" * 12, "0123456789abcdef" * 4
SECRETS = {
    "a token of the Hub": [HUB, f"see {HUB}.", f"https://{HUB}@huggingface.co/x"],
    "a key of an account": [
        "sk-proj-abcdefghij0123456789", "ghp_" + "aB3" * 12, "github_pat_" + "aB3_" * 10, "AKIAABCDEFGHIJKLMNOP",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmVk", "sk-" + "aB3" * 16, "sk-ant-api03-aB3-cD4_eF5-gH6",
        "gsk_" + "aB3" * 16, "nvapi-" + "aB3-" * 16, "xoxb-123456789012-aB3cD4", "api_org_" + "aBc" * 11,
    ],
    "a URL with a password": [
        "https://me:pa55@host/x", "see s3://me:word@bucket/y.", "https://:word@host", "https://abcdefghij0123456789@host",
    ],
    "a URL with a signature": [
        "https://account.blob.core.windows.net/x?sv=2&sig=aB3cD4eF5gH6iJ7kL8mN9%3D",
        f"https://host/x?X-Amz-Signature={SHA}",
    ],
    "a sign-in": ["Authorization: Basic bWU6cGFzc3dvcmQxMjM0NTY=", "authorization=Bearer aB3-cD4_eF5.gH6iJ7kL8"],
    "a secret by its name": ["OPENAI_API_KEY=aB3cD4eF5gH6iJ7kL8mN9oP0", "hub_token: aB3cD4eF5gH6iJ7kL8mN9oP0"],
    "a private key": ["-----BEGIN OPENSSH PRIVATE KEY-----"],
}  # fmt: skip
FIELDS = [
    ("hub_token", "abc"), ("OPENAI_API_KEY", "abc"), ("db_password", "abc"), ("wandb_key", SHA[:40]),
    ("token", "aB3" * 10), ("aws_secret_access_key", "a/B+3"), ("password", 'a"b\\c'),
]  # fmt: skip
HARMLESS = [
    {"sha256": SHA, "digest": SHA[:40], "commit": SHA[:40], "revision": SHA[:40], "fingerprint": SHA[:16]},
    {"eos_token": "<|im_end|>", "pad_token": "<reserved_0>", "sep_key": "layers", "num_tokens": 10**30},
    {"hub_token": "<HUB_TOKEN>", "api_key": "$API_KEY", "password": "***"},
    {"a": "https://host:8080/x@y", "b": "ssh://git@github.com/x", "c": "https://user:$TOKEN@host", "d": "://"},
    {"a": "https://***@host", "b": "https://user:<password>@host", "c": "mail me@host: https://host"},
    {"a": "hf_quantizer", "b": "task-0123456789abcdefghij", "c": "sk-", "d": "disk-0123456789abcdefghijk"},
    {SHA: 1, "files": [SHA, "model-00001-of-00002.safetensors"], "target_name_or_path": "Qwen/Qwen3-4B-Instruct-2507"},
]


# Words of cards, templates and code that many have.
EXAMPLES = [
    "export HF_TOKEN=hf_" + "x" * 34, "HF_TOKEN=hf_abcdefghijklmnopqrstuvwxyzABCDEFGH", "ghp_" + "x" * 36,
    "sk-" + "X" * 40 + "1", "xoxb-your-token-here", "AKIAIOSFODNN7EXAMPLE", "OPENAI_API_KEY=YourKeyOf20LettersOrMore",
    '{"api_key": "EMPTY", "base_url": "http://localhost:8000/v1"}', '{"api_key": "YOUR_API_KEY"}',
    '{"name": "log_in", "arguments": {"user": "me", "password": "abc123"}}', "Authorization: Bearer token-abc123",
    "git clone https://user:token@huggingface.co/x", "https://USER:PASSWORD@host", "postgres://me:password@localhost",
    "org/sk-wikipedia-20231101-cleaned", "https://codecov.io/badge.svg?token=AB12CD34EF",
]  # fmt: skip


@pytest.fixture
def check(tmp_path):
    def check(content, name="config.json", **options):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content, indent=2))
        check_no_secrets({f"dspark/{name}": path}, **options)

    return check


@pytest.mark.parametrize(("what", "text"), [(what, text) for what, texts in SECRETS.items() for text in texts])
def test_secrets_are_named_by_file_and_field(check, what, text):
    content = {"hidden_size": 8, "target_name_or_path": text}
    with pytest.raises(ValueError, match=rf"^dspark/config.json \(target_name_or_path, line 3\) holds {what}, "):
        check(content)
    with pytest.raises(ValueError, match=r"\(target_name_or_path, line 5\)"):
        check({"hidden_size": 8, "target_name_or_path": ["x", text]})
    with pytest.raises(ValueError, match=rf"^dspark/README.md \(line 2\) holds {what}, ") as caught:
        check(f"# Mine\n{text}\n", "README.md")
    assert text not in str(caught.value)


@pytest.mark.parametrize(("name", "value"), FIELDS)
def test_a_field_may_tell(check, name, value):
    with pytest.raises(ValueError, match=rf"\({name}, line 3\) holds a secret by its name"):
        check({"a": 1, name: value})


@pytest.mark.parametrize("content", HARMLESS)
def test_digests_words_and_placeholders_go_up(check, content):
    check(content)


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples_go_up(check, text):
    for name in ("README.md", "chat_template.jinja", "modeling_mine.py"):
        check(text, name)
    check({"chat_template": text})
    # One does not hide another.
    with pytest.raises(ValueError, match="line 2"):
        check(f"{text}\n{HUB}", "README.md")


def test_no_value_is_no_secret(check):
    check({"api_key": "EMPTY", "hub_token": "None", "password": "xxxx", "access_token": "your-token"})


def test_the_token_in_use(check, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "of-another-kind")
    for name in ("config.json", "LICENSE", "tokenizer.json"):
        with pytest.raises(ValueError, match="holds the token in use"):
            check("x of-another-kind y", name)
    check("x of-another-kind y", token="this-is-it")
    with pytest.raises(ValueError, match="holds the token in use"):
        check("x this-is-it y", token="this-is-it")
    monkeypatch.setenv("HF_TOKEN", "short")
    check("x short y")


def test_headers_of_weights(tmp_path):
    path = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(3)}, path, metadata={"format": "pt"})
    check_no_secrets({path.name: path})
    save_file({"weight": torch.zeros(3)}, path, metadata={"command": f"train --with {HUB}"})
    with pytest.raises(ValueError, match=r"model.safetensors \(command, line 1\) holds a token of the Hub"):
        check_no_secrets({path.name: path})


def test_texts_of_this_repository_hold_none():
    root = Path(__file__).parents[2]
    files = [path for path in root.glob("src/**/*.json*")] + [path for path in root.glob("tests/golden/**/*.json")]
    check_no_secrets({str(path): path for path in [*files, *root.glob("docs/*.md"), root / "LICENSE"]})
    assert files


PARTS = (
    "hf_",
    "sk-",
    "://",
    "a:",
    '"a": "',
    "eyJ",
    "-----BEGIN ",
    "://a:b",
    '"',
    "xox",
    "sk-a1b2",
    "?sig=",
    "api_key=",
    "authorization: Bearer a",
    '"a": "\\\\',
)


@pytest.mark.parametrize("part", PARTS)
def test_the_time_grows_with_the_length(check, part):
    start = time.process_time()
    check(part * 40_000)
    assert time.process_time() - start < 20
