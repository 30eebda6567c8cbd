"""
pytest's side of the tests: their options, the fixture t, limits of time, order, and the last line `N passed, N failed`.
README.md here says how to run them.
"""

import os
import re
import resource

import pytest

MARKS = (
    'limit(seconds, long=None): how long the test may take (60), in the short and in the long form',
    'early: takes long, and so begins before the others',
    'alone: runs when no other test does: pytest -m alone, after the others',
    'long: has a form that takes longer and tries more: --long',
    'root: only root can do what it needs',
    'windows: of the program for Windows alone',
)


def pytest_addoption(parser):
    group = parser.getgroup('butler_webhook')
    group.addoption('--binary', help='the program (build/butler_webhook); one that ends in .exe runs under wine')
    group.addoption('--binary-test', help='the one with short limits of time and the shim (build/test/butler_webhook)')
    group.addoption('--slow', type=float, help='every limit of time is so many times as long (1; wine: 3)')
    group.addoption('--long', action='store_true', help='the long form of the tests under faults: half an hour')
    group.addoption('--write', action='store_true', help='puts the real output into blocks of README.md that differ')
    group.addoption('--soak', type=float, help='how many seconds the soak takes')


def pytest_configure(config):
    for option, name in (('binary', 'BUTLER_BINARY'), ('binary_test', 'BUTLER_BINARY_TEST'), ('slow', 'BUTLER_SLOW'),
                         ('long', 'BUTLER_LONG'), ('soak', 'BUTLER_SOAK')):
        value = config.getoption(option)
        if value:
            os.environ[name] = os.path.abspath(value) if option.startswith('binary') else str(value)
    for text in MARKS:
        config.addinivalue_line('markers', text)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (65536 if hard == resource.RLIM_INFINITY else min(hard, 65536), hard))


def _is_worker(config):
    return hasattr(config, 'workerinput')


def pytest_sessionstart(session):
    import harness      # reads what was set above
    if not _is_worker(session.config) and not session.config.option.collectonly:
        for binary in (harness.BINARY, harness.BINARY_TEST):
            if not os.access(binary, os.X_OK):
                pytest.exit('%s is not there: build it first' % binary, 1)
        harness.SYSTEM.begin()


def pytest_sessionfinish(session):
    import harness
    if not _is_worker(session.config):
        harness.SYSTEM.end()


def pytest_collection_modifyitems(config, items):
    import harness

    def seconds(item):
        mark = item.get_closest_marker('limit')
        return (mark.args[-1 if config.getoption('long') else 0] if mark else 60) * harness.SLOW

    alone = 'alone' in (config.option.markexpr or '')
    for item in items:
        item.add_marker(pytest.mark.timeout(seconds(item), method='signal'))
        limit = item.get_closest_marker('limit')
        if limit and len(limit.args) > 1:
            item.add_marker('long')
        if item.get_closest_marker('root') and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason='only root can do what it needs'))
        if item.get_closest_marker('windows') and not harness.WINDOWS:
            item.add_marker(pytest.mark.skip(reason='for the program for Windows'))
    items[:] = [item for item in items if alone or not item.get_closest_marker('alone')]
    items.sort(key=lambda item: (not item.get_closest_marker('early'), -seconds(item)))


@pytest.fixture
def t(request):
    import harness
    return harness.Test(request.node.name)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Runs the test, ends what it has started, and fails with all checks that failed, and what the programs said."""
    import harness
    t = pyfuncitem.funcargs.get('t')
    if t is None:
        return None
    try:
        pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in pyfuncitem._fixtureinfo.argnames})
    except harness.Abort:
        pass
    finally:
        t.finish()
    if not t.checks:
        pytest.fail('it has checked nothing', pytrace=False)
    if t.failures:
        if re.search('Sanitizer|runtime error:', '\n'.join(t.failures)):
            pyfuncitem.execution_count = 9      # pytest-rerunfailures counts here: what a sanitizer says once is true
        said = ['%s: %s' % (process.command[-1], harness.one_line(line)) for process in t.processes for line in process.log[-20:]]
        pytest.fail('\n'.join(t.failures + said), pytrace=False)
    return True


def pytest_unconfigure(config):
    """The last line. Errors, workers that crashed and a session without any test count as failures."""
    reporter = config.pluginmanager.get_plugin('terminalreporter')
    if _is_worker(config) or reporter is None or config.option.collectonly:
        return
    for word, name in (('FAILED AT FIRST', 'rerun'), ('FAILED', 'failed'), ('FAILED', 'error')):
        for report in reporter.stats.get(name, ()):
            print('%s %s: %s' % (word, report.nodeid, ' '.join(report.longreprtext.split())[:1000]))
    count = {name: len(reporter.stats.get(name, ())) for name in ('passed', 'failed', 'error', 'skipped')}
    failed = count['failed'] + count['error']
    if not failed and getattr(reporter, '_session', None) is not None and reporter._session.exitstatus not in (0, 1):
        failed = 1
    print('%d passed, %d failed%s' % (count['passed'], failed or not count['passed'],
                                      ', %d skipped' % count['skipped'] if count['skipped'] else ''), flush=True)
