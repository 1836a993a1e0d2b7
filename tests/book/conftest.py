"""Where pages are tested by several processes, one of them tests all of a page: it loads the page once."""

from xdist.scheduler import LoadScopeScheduling


class ByPage(LoadScopeScheduling):
    """Keep tests of one page together; the page is their first parameter."""

    def _split_scope(self, nodeid):
        return nodeid.partition("[")[2].partition(".html")[0] or nodeid


def pytest_xdist_make_scheduler(config, log):
    return ByPage(config, log)
