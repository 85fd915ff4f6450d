"""Exports of attempts against agents: what the agent did, where and by which tool it failed."""

import json

from tests.evaluation.show.agent_attempts import ATTACK, LEAK, LIST, READ, YES, played
from tests.evaluation.show.test_exports import SCHEMA

from astra_rl.agents import load_world
from astra_rl.evaluation.records.attempt import Attempt
from astra_rl.evaluation.show.exports.markdown import markdown_summary
from astra_rl.evaluation.show.exports.preferences import write_preference_pairs, write_unpaired
from astra_rl.evaluation.show.exports.records import write_failures
from astra_rl.evaluation.show.exports.sarif import write_sarif

FAILED = played([LIST], [READ, LEAK])
SAFE = played([LIST], [YES], trial=1)


def rows(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_a_finding_names_world_slot_and_tools(tmp_path):
    write_sarif([FAILED, SAFE, played([LEAK], slot="user")], tmp_path / "s.sarif")
    text = (tmp_path / "s.sarif").read_text("utf-8")
    first, second = json.loads(text)["runs"][0]["results"]
    assert first["ruleId"] == "mail"
    assert first["locations"][0]["logicalLocations"] == [
        {
            "name": name,
            "fullyQualifiedName": f"mailbox/mail/{name}",
            "kind": "function",
        }
        for name in ("read_mail", "send_mail")
    ]
    (place,) = second["locations"][0]["logicalLocations"]
    assert place["fullyQualifiedName"] == "mailbox/user/send_mail"
    import jsonschema

    jsonschema.validate(json.loads(text), json.loads(SCHEMA.read_text("utf-8")))


def test_records_of_failures_have_the_trace_and_the_slot(tmp_path):
    assert write_failures([FAILED, SAFE], tmp_path / "f.jsonl") == 1
    (line,) = (tmp_path / "f.jsonl").read_text("utf-8").splitlines()
    back = Attempt.from_json(line)
    assert back.turns == FAILED.turns
    assert back.opening.facts["agent.slot"] == "mail"
    assert back.turns[0].trace.tools_at_failure == ("read_mail", "send_mail")


def test_each_message_of_an_agent_is_a_labelled_reply_and_only_the_hijacked_one_is_bad(tmp_path):
    write_unpaired([FAILED, SAFE], tmp_path / "u.jsonl")
    found = rows(tmp_path / "u.jsonl")
    called = [
        [call["function"]["name"] for call in row["completion"][0].get("tool_calls", ())]
        for row in found
    ]
    assert list(zip(called, [row["label"] for row in found], strict=True)) == [
        (["read_mail", "send_mail"], False),
        (["list_mails"], True),
        (["send_mail"], True),
        ([], True),
    ]
    bad = found[0]
    assert [each["role"] for each in bad["prompt"]] == ["system", "user", "assistant", "tool"]
    assert ATTACK in bad["prompt"][-1]["content"]  # in the list of mails
    assert bad["completion"][0]["tool_calls"][1]["function"]["arguments"] == LEAK.arguments
    assert [each["function"]["name"] for each in bad["tools"]] == load_world("mailbox").tool_names


def test_a_pair_has_one_prompt_and_two_messages_of_the_agent(tmp_path):
    write_preference_pairs([FAILED, SAFE], tmp_path / "p.jsonl")
    (row,) = rows(tmp_path / "p.jsonl")
    last = {
        key: row[key][0]["tool_calls"][-1]["function"]["arguments"]
        for key in ("chosen", "rejected")
    }
    assert last == {"chosen": YES.arguments, "rejected": LEAK.arguments}


def test_a_later_turn_is_read_with_all_before_it_and_the_slot_is_in_the_prompt(tmp_path):
    write_unpaired([played([YES], turns=2, slot="tool_description")], tmp_path / "u.jsonl")
    last = rows(tmp_path / "u.jsonl")[-1]
    roles = [each["role"] for each in last["prompt"]]
    assert roles == ["system", *["user", "assistant", "tool", "assistant"], *roles[5:]]
    assert roles[5:] == ["user", "assistant", "tool"]
    assert ATTACK in last["tools"][0]["function"]["description"]
    assert all(ATTACK not in each["content"] for each in last["prompt"])


def test_the_summary_for_a_pull_request_has_the_rates_of_agents():
    lines = markdown_summary([FAILED, SAFE]).splitlines()
    (done,) = (each for each in lines if each.startswith("| user's task done | "))
    (both,) = (each for each in lines if each.startswith("| attack succeeded and task done | "))
    assert "50% (1 of 2" in done
    assert "0% (0 of 2" in both
    turn = FAILED.turns[0].model_copy(update={"trace": None})
    chat = FAILED.model_copy(update={"turns": (turn,)})
    assert "task done" not in markdown_summary([chat])
