"""Requests made from the API's own description, thousands of them: what it says is what it does."""

from pathlib import Path

import hypothesis
import pytest
import schemathesis
from api_helper import listening, settings

from hybridrec.serve.access.keys import create_key
from hybridrec.serve.app import create_app
from hybridrec.serve.config import ServeConfig
from hybridrec.serve.store.by_url import open_store

pytestmark = pytest.mark.slow

schema = schemathesis.openapi.from_dict(create_app(ServeConfig(model=Path("none"))).openapi())
# An id that the schema allows may still be nobody's: 404, 409 and 422 are fine answers then. And a
# POST that is no JSON is refused as such (415) before anybody looks whether there is one (405).
LEFT_OUT = [schemathesis.checks.positive_data_acceptance, schemathesis.checks.unsupported_method]


@pytest.fixture(scope="module")
def served(model_folder, tmp_path_factory):
    """The URL of a service with keys, and one that may do everything."""
    config = settings(model_folder, tmp_path_factory.mktemp("schema"))
    store = open_store(config.store)
    key = create_key(store, "tester", ("admin",))
    store.close()
    with listening(config) as url:
        yield url, key


@schema.parametrize()
@hypothesis.settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(hypothesis.HealthCheck),
)
def test_whatever_is_sent_is_answered_as_described(case, served):
    url, key = served
    case.call_and_validate(
        base_url=url, headers={"Authorization": f"Bearer {key}"}, excluded_checks=LEFT_OUT
    )
