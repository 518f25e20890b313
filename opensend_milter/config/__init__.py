"""One YAML file and the environment -> frozen, checked sections; a wrong value stops the program at start."""

from opensend_milter.config.clashes import check_front_door
from opensend_milter.config.keys import KEYS, Key
from opensend_milter.config.loader import (
    DEFAULT_PATH,
    PATH_VARIABLE,
    Setting,
    Sources,
    effective,
    load,
    load_with_sources,
)
from opensend_milter.config.option import Option
from opensend_milter.config.sections import (
    Api,
    Auth,
    Aws,
    Config,
    Database,
    Delivery,
    Log,
    Milter,
    Policy,
    Queue,
    Relay,
    Size,
    Smtp,
    Tls,
)
from opensend_milter.config.values import MASK

__all__ = [
    "DEFAULT_PATH",
    "KEYS",
    "MASK",
    "PATH_VARIABLE",
    "Api",
    "Auth",
    "Aws",
    "Config",
    "Database",
    "Delivery",
    "Key",
    "Log",
    "Milter",
    "Option",
    "Policy",
    "Queue",
    "Relay",
    "Setting",
    "Size",
    "Smtp",
    "Sources",
    "Tls",
    "check_front_door",
    "effective",
    "load",
    "load_with_sources",
]
