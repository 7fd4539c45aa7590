# Runs rdma-core's Python tests as its run_tests.py does, and prints a line for each: outcome, name and reason,
# between tabs.
import os
import random
import sys
import unittest
from importlib.machinery import SourceFileLoader

FOLDER = '/usr/share/pyverbs/tests'
sys.path[:0] = [os.path.dirname(FOLDER), FOLDER]
from args_parser import parser

# Tests choose sizes, ports and sequence numbers by this.
random.seed(4)
tests = SourceFileLoader('tests', os.path.join(FOLDER, '__init__.py')).load_module()
parser.parse_args()


class Lines(unittest.TestResult):
    """Prints what becomes of each test."""

    def tell(self, outcome, test, reason=''):
        name = test.id().removeprefix('tests.')
        print(outcome, name, ' '.join(str(reason).split()), sep='\t', flush=True)

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
print('done', result.testsRun, sep='\t')
