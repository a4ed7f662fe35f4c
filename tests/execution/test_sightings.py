from taskflow_gql.execution.sightings import Sightings


def test_counts_are_halved_after_so_many_sightings() -> None:
    sightings = Sightings(memory=10)
    assert [sightings.add("often") for _ in range(9)] == list(range(1, 10))
    assert sightings.add("once") == 1
    assert (sightings.of("often"), sightings.of("once"), sightings.of("never")) == (9, 1, 0)
    sightings.add("new")
    assert (sightings.of("often"), sightings.of("once"), sightings.of("new")) == (4, 0, 1)
