// The structures of a chat's body: messages, tools, the form of the answer. Stores of the parameter table; their errors
// name the field by its place ("messages[2].content[0].type").
#pragma once

#include "api/parameters.h"

namespace xgen::api {

Status store_messages(const boost::json::value& value, Draft& draft);
Status store_tools(const boost::json::value& value, Draft& draft);
Status store_tool_choice(const boost::json::value& value, Draft& draft);
Status store_response_format(const boost::json::value& value, Draft& draft);
// How the tools and their choice fit together.
Status check_tools(const Draft& draft);

}  // namespace xgen::api
