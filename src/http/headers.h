// Header fields of requests and answers, as both sides of a connection see them.
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace xgen::http {

using Headers = std::vector<std::pair<std::string, std::string>>;

// Of ASCII letters, as header names and their tokens are compared.
bool equal_ignoring_case(std::string_view a, std::string_view b);

// First value of a header, case-insensitive; empty if absent.
std::string_view find_header(const Headers& headers, std::string_view name);

}  // namespace xgen::http
