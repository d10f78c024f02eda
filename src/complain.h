// How a command ends that cannot do what it was asked: one line to stderr and an exit code.
#pragma once

#include <cstdio>
#include <string>

namespace xgen {

constexpr int kFailed = 1;   // what goes wrong while running
constexpr int kMisused = 2;  // what the user wrote

// The code.
inline int complain(int code, const std::string& message) {
  std::fprintf(stderr, "xgen-model: %s\n", message.c_str());
  return code;
}

}  // namespace xgen
