/* Before _ssl.c: a distribution's Python was built with headers of Bluetooth, which _ssl.c has no
   need of, and which are rarely installed. */

#include "pyconfig.h"

#undef HAVE_BLUETOOTH_BLUETOOTH_H
#undef HAVE_BLUETOOTH_H
