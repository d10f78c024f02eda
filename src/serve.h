// `xgen-model serve`: wires the parts together, loads the models, serves, and drains on a signal.
#pragma once

#include "setup.h"

namespace xgen {

// Until a signal ends it. The exit code.
int serve(const Flags& flags);

}  // namespace xgen
