"""What the search of serving techniques begins with."""

from __future__ import annotations

from quicksilver import engines, techniques
from quicksilver.search import serving, space
from quicksilver.search.policy import Policy
from quicksilver.search.space import Configuration


def test_each_technique_comes_alone_on_the_weights_that_lead_the_race() -> None:
    int8 = (techniques.make("int8"),)
    where = space.combine([(), int8], space.serving(engines.find("fake")), {})
    policy = Policy(where, loads=2)
    as_is, best = where.index(Configuration(())), where.index(Configuration(int8))
    assert as_is is not None
    assert best is not None
    policy.start(as_is)
    policy.tell(best, [0.5, 0.3])
    begun = [where.configurations[index] for index in serving.alone(policy)]
    assert {configuration.base for configuration in begun} == {int8}
    assert all(len(configuration.serving) == 1 for configuration in begun)
    assert "prompt-lookup" in {configuration.serving[0].name() for configuration in begun}
