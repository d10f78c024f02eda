// Loads the bytes as a tokenizer.json (or, after a leading 'M', as a tokenizer.model), then encodes and decodes.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/file_set.h"
#include "base/utf8.h"
#include "text/stream_decoder.h"
#include "text/tokenizer.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace xgen;
  using namespace xgen::text;
  std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const bool model = bytes.starts_with('M');
  if (model) bytes.remove_prefix(1);
  auto loaded = model ? Tokenizer::load(*embedded_files("fuzz", {{"tokenizer.model", bytes}}))
                      : Tokenizer::from_json(bytes, "fuzz");
  if (!loaded.ok()) return 0;
  const Tokenizer& t = **loaded;
  for (const std::string_view text :
       {"Hello, w\xC3\xB6rld 123\n\t  <s> ab", "", " \xEA\xB0\x80\xF0\x9F\x98\x80 e\xCC\x81"}) {
    for (const bool parse : {false, true}) {
      auto ids = t.encode(text, {true, parse});
      if (!ids.ok()) continue;
      const std::string once = t.decode(*ids, parse);
      StreamDecoder stream(*loaded, parse);
      std::string joined;
      for (const TokenId id : *ids) {
        joined += stream.push(id);
        if (!is_valid_utf8(joined)) std::abort();
        (void)t.token_bytes(id);
      }
      joined += stream.flush();
      if (joined != once) std::abort();
    }
  }
  return 0;
}
