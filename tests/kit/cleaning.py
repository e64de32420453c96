"""Ends and drops what a test left behind, so that the next one finds idle servers."""

from replies import FINISHED, executions, wait_until
from wire import Wire

DEFAULTS = {
    "MaxExecutions": 1000,
    "MaxExecutionsPerRegistration": 100,
    "MaxEventDepth": 64,
    "InterpreterMaxWaitTime": 50,
    "ProfileExecutions": 0,
    "ExecutionMaxIdleTime": 5000,
    "SendMsgRetries": 3,
    "PythonAttemptTraceback": 1,
    "PythonInstallReqMaxIdleTime": 30000,
}


def _nothing_listed(wire):
    for execution, status in executions(wire).items():
        wire.call("RG.DROPEXECUTION" if status in FINISHED else "RG.ABORTEXECUTION", execution)
    return not executions(wire)


def leave_nothing(servers):
    for server in servers:
        with Wire(server.port) as wire:
            wire.call("RG.CONFIGSET", *[word for item in DEFAULTS.items() for word in item])
            wait_until(lambda wire=wire: _nothing_listed(wire), f"the executions of {server} going away")
