// Any text as a chat template: it must render or fail within its limits.
#include <cstddef>
#include <cstdint>
#include <string>

#include "text/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using xgen::text::jinja::Value;
  static const Value kContext = *xgen::text::jinja::from_json(
      R"({"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a é <b>\n"},
                       {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f",
                        "arguments": {"x": 1, "y": [2.5, true]}}}]}],
          "tools": null, "add_generation_prompt": true, "bos_token": "<s>", "n": 3, "l": [3, 1, 2], "s": "text"})");
  xgen::text::RenderSettings settings;
  settings.limits.max_steps = 20'000;
  settings.limits.max_output = 1 << 16;
  settings.limits.max_memory = 1 << 20;
  settings.limits.max_depth = 200;
  const auto parsed = xgen::text::ChatTemplate::parse(std::string(reinterpret_cast<const char*>(data), size));
  if (parsed.ok()) (void)parsed->render(kContext, settings);
  return 0;
}
