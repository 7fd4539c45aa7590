# Runs rdma-core's Python tests as its run_tests.py does, and prints a line for each: outcome, name and reason,
# between tabs.
import os
import random
import sys
import time
import unittest
from importlib.machinery import SourceFileLoader

FOLDER = '/usr/share/pyverbs/tests'
sys.path[:0] = [os.path.dirname(FOLDER), FOLDER]
from args_parser import parser

# Tests choose sizes, ports and sequence numbers by this.
random.seed(4)
tests = SourceFileLoader('tests', os.path.join(FOLDER, '__init__.py')).load_module()
parser.parse_args()

# Tests that send, and go on as if a datagram took no longer than on a card: here each send is given so many seconds.
PAUSES = {'test_cq.CQTest.test_resize_cq': 0.1}
utils = sys.modules['tests.utils']
send = utils.send
pause = 0


def send_and_pause(*args, **kwargs):
    sent = send(*args, **kwargs)
    time.sleep(pause)
    return sent


utils.send = send_and_pause


def name_of(test):
    return test.id().removeprefix('tests.')


class Lines(unittest.TestResult):
    """Prints what becomes of each test."""

    def startTest(self, test):
        global pause
        super().startTest(test)
        pause = PAUSES.pop(name_of(test), 0)

    def tell(self, outcome, test, reason=''):
        print(outcome, name_of(test), ' '.join(str(reason).split()), sep='\t', flush=True)

    def addSuccess(self, test):
        super().addSuccess(test)
        self.tell('passed', test)

    def addSkip(self, test, reason):
        super().addSkip(test, reason)
        self.tell('skipped', test, reason)

    def addFailure(self, test, err):
        super().addFailure(test, err)
        self.tell('failed', test, repr(err[1]))

    def addError(self, test, err):
        super().addError(test, err)
        self.tell('failed', test, repr(err[1]))

    def addSubTest(self, test, subtest, err):
        super().addSubTest(test, subtest, err)
        if err is not None:
            self.tell('failed', subtest, repr(err[1]))


result = Lines()
unittest.defaultTestLoader.loadTestsFromModule(tests).run(result)
assert not PAUSES, f'no such tests: {list(PAUSES)}'
print('done', result.testsRun, sep='\t')
