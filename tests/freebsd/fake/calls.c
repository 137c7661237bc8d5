/* The one table behind calls.h, for both extension modules. */
#include "calls.h"

struct fake_calls fake_calls;
