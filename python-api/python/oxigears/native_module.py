"""The module `redisgears` (also `rg`) that scripts and installed packages import."""

import sys
import types


def create(members):
    """Makes the module and its alias importable."""
    module = types.ModuleType("redisgears", "The functions and exceptions of the script environment.")
    vars(module).update(members)
    sys.modules["redisgears"] = sys.modules["rg"] = module
    sys.modules["redisAI"] = _redis_ai(members["GearsError"])
    return module


# Functions of the second native module, which needs a module that this server does not talk to.
_REDIS_AI = (
    "createTensorFromValues createTensorFromBlob setTensorInKey getTensorFromKey msetTensorsInKeyspace "
    "mgetTensorsFromKeyspace tensorToFlatList tensorGetDataAsBlob tensorGetDims createModelRunner "
    "modelRunnerAddInput modelRunnerAddOutput modelRunnerRun modelRunnerRunAsync createScriptRunner "
    "scriptRunnerAddInput scriptRunnerAddInputList scriptRunnerAddOutput scriptRunnerRun scriptRunnerRunAsync "
    "createDAGRunner"
).split()


def _redis_ai(error):
    def refuse(*args, **kwargs):
        raise error("RedisAI is not loaded, it is not possible to use AI interface.")

    module = types.ModuleType("redisAI", "Interface of RedisAI, which is not loaded.")
    vars(module).update(dict.fromkeys(_REDIS_AI, refuse))
    return module
