// Writing JSON straight into a string: what a token costs on its way out.
#pragma once

#include "base/json_text.h"

namespace xgen::api {

using xgen::append_json_float;
using xgen::append_json_int;
using xgen::append_json_string;

}  // namespace xgen::api
