"""Credentials are learnt where they stand, and appear nowhere else."""

from __future__ import annotations

import base64
import contextlib
import csv
import html
import json
import re
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.formats import FORMATS

from astra_rl.errors import ConfigurationError
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.records.turn import JudgeScore, Turn
from astra_rl.evaluation.show.exports import EXPORTS
from astra_rl.infra import redaction
from astra_rl.infra.jsonio import atomic_file, json_line, write_atomic, write_json
from astra_rl.infra.redaction import (
    REDACTED,
    keep_secret,
    learn_from,
    learn_from_environment,
    redact,
    redact_message,
    redact_settings,
    redacted_places,
)
from astra_rl.runs.attempt_log import AttemptLog
from astra_rl.runs.folder import file_stem

KEY = "sentinel-4f2c9d41-credential"


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction, "_registered", frozenset())
    monkeypatch.setattr(redaction, "_forms", ())


@pytest.mark.parametrize(
    "name",
    [
        *("OPENAI_API_KEY", "HF_TOKEN", "my_secret", "DB_PASSWORD", "AWS_SECRET_ACCESS_KEY"),
        *("GPG_PASSPHRASE", "DB_PASS", "MYSQL_PWD", "GITHUB_PAT", "PROXY_AUTH", "SESSION_COOKIE"),
    ],
)
def test_what_a_variable_of_a_telling_name_holds_is_replaced(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, KEY)
    learn_from_environment()
    assert redact(f"the key is {KEY}.") == f"the key is {REDACTED}."


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("TOKENIZERS_PARALLELISM", "some-long-value-12345678"),
        ("KEY_FILE", "/home/me/keys/id_ed25519.key"),
        ("PWD", "/home/me/work-4f2c9d41-long"),
        ("OLDPWD", "/home/me/work-4f2c9d41-long"),
        ("BYPASS_RULES", "some-long-value-12345678"),
        ("TOKEN_URL", "https://auth.example/token/v2/long"),
        ("EDITOR", "some-long-value-12345678"),
        ("DB_PASSWORD", "password"),
        ("MAX_TOKENS", "123456789"),
        ("SORT_KEY", "first_turn"),
    ],
)
def test_what_may_be_a_word_of_the_data_is_left_alone(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    learn_from_environment()
    assert redact(f"it is {value}.") == f"it is {value}."


def test_passwords_of_addresses_are_registered_wherever_they_stand(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://me:proxy-pass-1@proxy.example:3128")
    learn_from_environment()
    learn_from({"target": {"model": "https://user:url-pass-22@host.example/v1?api_key=query-333"}})
    for secret in ("proxy-pass-1", "url-pass-22", "query-333"):
        assert redact(f"<{secret}>") == f"<{REDACTED}>"


def test_basic_authentication_is_known_encoded_and_decoded() -> None:
    """Clients send the password of an address in base64, and an endpoint may say what it got."""
    learn_from({"base_url": f"http://me:{quote(KEY + '/', safe='')}@host.example/v1"})
    sent = base64.b64encode(f"me:{KEY}/".encode()).decode()
    assert redact(f"got Basic {sent}") == f"got Basic {REDACTED}"
    other = f"{KEY}-two"
    encoded = base64.b64encode(f"me:{other}".encode()).decode()
    learn_from({"headers": {"Authorization": f"Basic {encoded}"}})
    assert redact(f"{encoded} is {other}") == f"{REDACTED} is {REDACTED}"


@pytest.mark.parametrize(
    "found",
    [
        {"api_key": KEY},
        {"deep": [{"API-Key": KEY}]},
        {"headers": {"Authorization": f"Bearer {KEY}"}},
        {"default_headers": {"X-Company-Auth": KEY}},
        {"extra_query": {"subscription-key": KEY}},
        {"Authorization": f"Basic {KEY}"},
        {"password": KEY},
    ],
)
def test_settings_of_telling_names_are_registered_and_left_out(found: object) -> None:
    left = redact_settings(found)
    assert KEY not in json.dumps(left)
    assert len(list(redacted_places(left))) == 1
    learn_from(found)
    assert redact(f"401 for {KEY}") == f"401 for {REDACTED}"


def test_settings_that_only_name_a_credential_stay() -> None:
    found = {
        "api_key_env": "MY_KEY_OF_2026_FOR_TESTS",
        "headers": {"X-Key_env": "MY_KEY_OF_2026_FOR_TESTS"},
        "max_tokens": 256,
        "options": {"secret": "the planted secret of 2026, which is data"},
        "of": ("a", "b"),
    }
    assert redact_settings(found) == {**found, "of": ["a", "b"]}
    learn_from(found)
    assert redact(json.dumps(found)) == json.dumps(found)


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer {}",
        '{{"Authorization": "Basic {}"}}',
        "GET https://{}@host/v1 failed",
        "GET https://host/v1?api_key={}&x=1 failed",
        "--set target.api_key={}",
        "OpenAI(api_key='{}')",
        "x-api-key: {}",
    ],
)
def test_messages_lose_credentials_nobody_told_of(text: str) -> None:
    shown = redact_message(text.format(KEY))
    assert shown == text.format(REDACTED)
    assert redact_message(shown) == shown


@pytest.mark.parametrize(
    "key",
    [
        "sk-proj-0123456789abcdef",
        "hf_abcdefghijklmnopqrst",
        "ghp_0123456789abcdefghij",
        "AKIAIOSFODNN7EXAMPLE",
        "xoxb-1234567890-abc",
        "eyJhbGciOiJI.eyJzdWIiOiIx.SflKxwRJSMeK",
    ],
)
def test_what_has_the_form_of_a_key_is_left_out_of_messages_and_stays_in_data(key: str) -> None:
    assert redact_message(f"refused {key}!") == f"refused {REDACTED}!"
    assert redact(f"it said {key}!") == f"it said {key}!"


@pytest.mark.parametrize(
    "text",
    [
        "api_key: missing; it must be given.",
        "moderator.options.api_key: unknown key. Known: categories, model.",
        "runs/secret-keepers-20260101/report.html",
        "https://host.example:8000/v1/models?limit=3",
        "the password is correct horse battery staple",
        "1 token, 2 tokens/s, key: value",
    ],
)
def test_ordinary_messages_stay_as_they_are(text: str) -> None:
    assert redact_message(text) == text


@pytest.mark.slow
@pytest.mark.parametrize(
    "text", [each * 200_000 for each in ("a-", "?key", "://", "eyJ-", "api-key-")]
)
def test_no_message_takes_long(text: str) -> None:
    assert redact_message(text) == text  # would not end if the time grew with the square


SECRETS = st.text(
    st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=20, max_size=40
)


@settings(max_examples=25)
@given(SECRETS)
def test_however_a_file_escapes_a_credential_it_is_gone(
    tmp_path_factory: pytest.TempPathFactory, secret: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redaction, "_registered", frozenset())
        patch.setattr(redaction, "_forms", ())
        keep_secret(secret)
        folder = tmp_path_factory.mktemp("written")
        assert secret not in json.loads(json_line({"x": secret}))["x"]
        write_json({"x": [secret]}, folder / "a.json")
        assert json.loads((folder / "a.json").read_text("utf-8")) == {"x": [REDACTED]}
        write_atomic(folder / "a.html", f"<p>{html.escape(secret)}</p>")
        assert html.unescape((folder / "a.html").read_text("utf-8")) == f"<p>{REDACTED}</p>"


def test_files_are_redacted_however_they_are_written(tmp_path: Path) -> None:
    keep_secret(KEY)
    with atomic_file(tmp_path / "a.csv") as file:
        csv.writer(file).writerow(["1", f"said {KEY}"])
    assert (tmp_path / "a.csv").read_text().strip() == f"1,said {REDACTED}"
    write_atomic(tmp_path / "a.yaml", yaml.safe_dump({"a": KEY}))
    assert yaml.safe_load((tmp_path / "a.yaml").read_text()) == {"a": REDACTED}
    with atomic_file(tmp_path / "a.xml") as file:
        file.writelines([f"<a>{KEY}</a>\n", "<b/>\n"])
        print(KEY, file=file)
    assert (tmp_path / "a.xml").read_text() == f"<a>{REDACTED}</a>\n<b/>\n{REDACTED}\n"


@pytest.mark.parametrize("kind", FORMATS)
def test_an_export_has_no_credential_that_was_learnt_after_its_attempts(
    tmp_path: Path, kind: str
) -> None:
    """The attempts were recorded where it was not in the environment."""
    turns = [Turn(attack=f"a {KEY}", response=f"b {KEY}", scores={"j": JudgeScore(value=1.0)})]
    attempts = [
        Attempt.make(
            run="r", opening=f"{KEY} {n}", target=f"t {KEY}", attacker=KEY, turns=turns, judge="j",
            threshold=0.5, category=KEY,
        )
        for n in range(2)
    ]  # fmt: skip
    keep_secret(KEY)
    path = tmp_path / "out"
    with contextlib.suppress(ConfigurationError):  # preferences need a safe reply
        EXPORTS[kind].write(attempts, path)
    for each in tmp_path.rglob("*"):
        assert each.is_dir() or KEY.encode() not in each.read_bytes()


def test_an_index_has_what_its_log_has(tmp_path: Path) -> None:
    keep_secret(KEY)
    made = Attempt.make(
        run="r", opening="o", target=f"t {KEY}", attacker=KEY, turns=[], judge="j", category=KEY,
        error="not played",
    )  # fmt: skip
    with AttemptLog(tmp_path / "attempts.jsonl", write=True) as log:
        log.append(made)
        log.flush()
        assert [row.category for row in log.rows()] == [REDACTED]
    for path in tmp_path.iterdir():
        assert KEY.encode() not in path.read_bytes()


def test_the_name_of_a_file_has_no_credential() -> None:
    assert KEY not in file_stem(f"replay_http://user:{KEY}@host.example/v1")
    keep_secret(KEY)
    assert KEY not in file_stem(f"replay {KEY}")


def test_a_setting_may_say_that_something_is_redacted() -> None:
    assert list(redacted_places({"title": f"the names are {REDACTED}"})) == []


def test_redaction_of_what_is_redacted_changes_nothing() -> None:
    keep_secret(KEY)
    keep_secret(REDACTED)
    once = redact(f"{KEY} and {KEY}")
    assert redact(once) == once == f"{REDACTED} and {REDACTED}"


SPELLINGS = ["schl\u00fcssel-4f2c9d41-\u00e9", "a/b+c d=4f2c9d41&e", 'quote"back\\slash-4f2c9d41']


@pytest.mark.parametrize("secret", SPELLINGS)
def test_every_spelling_of_a_credential_is_replaced(secret: str) -> None:
    keep_secret(secret)
    quoted = [quote(secret), quote(secret, safe=""), quote_plus(secret)]
    for spelled in [
        *(json.dumps(secret), json.dumps(secret, ensure_ascii=False)),
        *(json.dumps(secret).replace("/", "\\/"), html.escape(secret)),
        *(*quoted, *(re.sub("%..", lambda m: m.group().lower(), each) for each in quoted)),
    ]:
        assert redact(f"<{spelled.strip(chr(34))}>") == f"<{REDACTED}>"


def test_the_serialiser_of_attempts_knows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In library use, nothing else registers credentials."""
    monkeypatch.setenv("SOME_API_KEY", KEY)
    turn = Turn(attack="a", response=f"key {KEY}")
    attempt = Attempt.make(run="r", opening="o", target="t", attacker="a", turns=[turn], judge="j")
    with AttemptLog(tmp_path / "attempts.jsonl", write=True) as log:
        log.append(attempt)
    assert KEY not in (tmp_path / "attempts.jsonl").read_text()
    assert REDACTED in (tmp_path / "attempts.jsonl").read_text()


def test_a_variable_that_gets_a_credential_later_is_registered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOME_ADDRESS", "http://host/")
    redaction.learn_from_environment()
    monkeypatch.setenv("SOME_ADDRESS", "http://me:pass1word2of3mine@host/")
    redaction.learn_from_environment()
    assert "pass1word2of3mine" not in redaction.redact("it is pass1word2of3mine")
