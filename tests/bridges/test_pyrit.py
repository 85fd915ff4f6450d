"""PyRIT attacks with the trained attacker, and its memory is read."""

import asyncio
import json

import pytest

from astra_rl.bridges.attacker import TrainedAttacker
from astra_rl.core.attack_files import read_attacks
from astra_rl.core.seeding import derive_seed

pytestmark = [
    pytest.mark.bridge("pyrit"),
    pytest.mark.slow,
    pytest.mark.filterwarnings("default"),
]


@pytest.fixture(autouse=True)
def memory(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    from pyrit.setup import IN_MEMORY, initialize_pyrit_async

    asyncio.run(initialize_pyrit_async(memory_db_type=IN_MEMORY))


def objective_target():
    """A target of PyRIT that answers with what it was told."""
    from pyrit.models import construct_response_from_request
    from pyrit.prompt_target import PromptTarget
    from pyrit.prompt_target.common.target_capabilities import TargetCapabilities
    from pyrit.prompt_target.common.target_configuration import TargetConfiguration

    class Echo(PromptTarget):
        _DEFAULT_CONFIGURATION = TargetConfiguration(
            capabilities=TargetCapabilities(
                supports_multi_turn=True, supports_editable_history=True
            )
        )

        async def _send_prompt_to_target_async(self, *, normalized_conversation):
            request = normalized_conversation[-1].message_pieces[0]
            said = f"you said {request.converted_value}"
            return [construct_response_from_request(request=request, response_text_pieces=[said])]

    return Echo()


def test_the_attacker_leads_a_red_teaming_attack(run, tmp_path):
    from pyrit.executor.attack import AttackAdversarialConfig, AttackScoringConfig, RedTeamingAttack
    from pyrit.memory import CentralMemory
    from pyrit.score import SubStringScorer

    from astra_rl.bridges.pyrit import AttackerTarget

    attack = RedTeamingAttack(
        objective_target=objective_target(),
        attack_adversarial_config=AttackAdversarialConfig(
            target=AttackerTarget(run=str(run), goal="more", seed=4)
        ),
        attack_scoring_config=AttackScoringConfig(
            objective_scorer=SubStringScorer(substring="never said", categories=["test"]),
            use_score_as_feedback=False,
        ),
        max_turns=2,
    )
    result = asyncio.run(attack.execute_async(objective="more"))
    memory = CentralMemory.get_memory_instance()
    pieces = memory.get_message_pieces(conversation_id=result.conversation_id)
    attacks = [piece.converted_value for piece in pieces if piece.api_role == "user"]
    attacker = TrainedAttacker(run)
    context = attacker.opening(goal="more")
    expected = []
    for _ in range(2):
        (said,) = attacker.write([context], [derive_seed(4, "message", len(context.turns))])
        expected.append(str(said))
        context = context + str(said) + f"you said {said}"
    assert attacks == expected
    (tmp_path / "memory.json").write_text(
        json.dumps([piece.model_dump(mode="json") for piece in pieces])
    )
    assert [str(each.attack) for each in read_attacks(tmp_path / "memory.json")] == expected


def test_the_attacker_converts_goals_to_attacks(run):
    from pyrit.executor.attack import AttackConverterConfig, PromptSendingAttack
    from pyrit.memory import CentralMemory
    from pyrit.prompt_normalizer import ConverterConfiguration

    from astra_rl.bridges.pyrit import AttackConverter

    converters = ConverterConfiguration.from_converters(
        converters=[AttackConverter(run=str(run), seed=4)]
    )
    attack = PromptSendingAttack(
        objective_target=objective_target(),
        attack_converter_config=AttackConverterConfig(request_converters=converters),
    )
    result = asyncio.run(attack.execute_async(objective="more"))
    memory = CentralMemory.get_memory_instance()
    first, second = memory.get_message_pieces(conversation_id=result.conversation_id)
    assert first.original_value == "more"
    assert first.converted_value == TrainedAttacker(run).next_message([], goal="more", seed=4)
    assert second.converted_value == f"you said {first.converted_value}"
