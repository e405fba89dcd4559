"""Logs that the tests of this folder share."""

import pytest
from paper_logs import checkout

from art_rs_plugin.experiments.paper import sources

VOTES = 1000


@pytest.fixture(scope="session")
def authors(tmp_path_factory):
    """A folder laid out as the authors' checkout, of n = 1 000 and alpha = .01."""
    return checkout(tmp_path_factory.mktemp("checkout") / "data", n=VOTES)


@pytest.fixture(scope="session")
def logs(authors):
    return sources.find([authors], n=VOTES)
