# The face that matters is the typed Python layer; what ffi gives is for scripts that know C.
from typing import Any

ffi: Any
lib: Any
