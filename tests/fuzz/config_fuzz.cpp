// models.yaml from arbitrary bytes: every input is read or refused with a message.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "config/config.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto config = xgen::config::load_text({reinterpret_cast<const char*>(data), size}, "models.yaml");
  if (config.ok() ? config->models.empty() : config.error().message.empty()) std::abort();
  return 0;
}
