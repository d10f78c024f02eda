// UTF-8 checks and steps over bytes that may be invalid.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace xgen {

bool is_valid_utf8(std::string_view text);
// Where the first sequence begins that is not valid; npos if all are.
std::size_t find_invalid_utf8(std::string_view text);

// Length of the longest prefix that does not end inside an unfinished (but so far valid) UTF-8 sequence.
std::size_t complete_utf8_prefix(std::string_view text);

// Every maximal invalid subsequence becomes U+FFFD (as Python's errors="replace" does).
std::string replace_invalid_utf8(std::string_view text);

}  // namespace xgen
