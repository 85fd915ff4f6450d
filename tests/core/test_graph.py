import pytest
from hypothesis import given
from hypothesis import strategies as st

from astra_rl.core.environment import Graph, Node


def node(name, *children):
    return Node("c", name, "r", 0.0, list(children))


@pytest.fixture
def tree():
    #      a      b
    #     / \     |
    #    c   d    e
    #    |
    #    f
    return Graph("c", [node("a", node("c", node("f")), node("d")), node("b", node("e"))])


def names(nodes):
    return "".join(each.attack for each in nodes)


def test_nodes_come_breadth_first_each_once(tree):
    assert names(tree.nodes()) == "abcdef"


def test_every_set_of_siblings_comes_once_and_none_is_empty(tree):
    assert [names(group) for group in tree.sibling_groups()] == ["ab", "cd", "e", "f"]


def test_paths_walk_from_the_first_turn_to_each_leaf(tree):
    assert [names(path) for path in tree.paths()] == ["acf", "ad", "be"]


def test_an_episode_without_turns_has_no_nodes_and_no_paths():
    assert list(Graph("c").nodes()) == list(Graph("c").paths()) == []


def test_a_node_takes_its_five_parts_by_position_and_stays_mutable():
    made = Node("context", "attack", "response", 0.5, [])
    made.reward = 1.0
    made.mark = "mine"
    assert (made.context, made.attack, made.response, made.reward) == (
        "context",
        "attack",
        "response",
        1.0,
    )
    assert made.reward_terms == {}


def test_a_subclass_of_node_may_hand_on_five_positions_and_add_attributes():
    class MyNode(Node[str, str]):
        def __init__(self, context, attack, response, reward, children, extra):
            super().__init__(context, attack, response, reward, children)
            self.extra = extra

    assert MyNode("c", "a", "r", 0.0, [], "more").extra == "more"


def test_nodes_do_not_share_their_children():
    first, second = Node("c", "a", "r", 0.0), Node("c", "a", "r", 0.0)
    assert first.children is not second.children
    assert first.reward_terms is not second.reward_terms


def test_a_deep_tree_does_not_exhaust_the_stack():
    deepest = leaf = node("x")
    for _ in range(5000):
        leaf = node("x", leaf)
    graph = Graph("c", [leaf])
    assert sum(1 for _ in graph.nodes()) == 5001
    assert next(graph.paths())[-1] is deepest


trees = st.recursive(
    st.builds(lambda: node("x")),
    lambda children: st.lists(children, max_size=4).map(lambda below: node("x", *below)),
    max_leaves=20,
)


@given(st.lists(trees, max_size=3))
def test_walks_agree_on_what_is_in_a_tree(children):
    graph = Graph("c", children)
    nodes = list(graph.nodes())
    assert len({id(each) for each in nodes}) == len(nodes)
    assert sum(map(len, graph.sibling_groups())) == len(nodes)
    leaves = [each for each in nodes if not each.children]
    assert {id(path[-1]) for path in graph.paths()} == {id(leaf) for leaf in leaves}
    assert {id(each) for path in graph.paths() for each in path} == {id(each) for each in nodes}
