// Inputs of `xgen-model import` from arbitrary bytes: each is read or refused with a message, and what is read can be
// told.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "import/import.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const auto imported = xgen::importer::import_text({reinterpret_cast<const char*>(data), size}, "input",
                                                    xgen::importer::ImportOptions());
  if (imported.ok() ? imported->models_yaml.empty() || imported->report.empty() : imported.error().message.empty())
    std::abort();
  return 0;
}
