// What holds for every tokenizer that loads.
#pragma once

#include <cstdlib>
#include <string>
#include <string_view>

#include "base/utf8.h"
#include "text/stream_decoder.h"
#include "text/tokenizer.h"

namespace xgen::fuzz {

// Encodes a few texts; decoding them token by token gives what decoding them at once gives, and valid UTF-8.
inline void check_tokenizer(const std::shared_ptr<const text::Tokenizer>& tokenizer) {
  for (const std::string_view text :
       {"Hello, w\xC3\xB6rld 123\n\t  <s> ab", "", " \xEA\xB0\x80\xF0\x9F\x98\x80 e\xCC\x81"}) {
    for (const bool parse : {false, true}) {
      const auto ids = tokenizer->encode(text, {true, parse});
      if (!ids.ok()) continue;
      text::StreamDecoder stream(tokenizer, parse);
      std::string joined;
      for (const text::TokenId id : *ids) {
        joined += stream.push(id);
        if (!is_valid_utf8(joined)) std::abort();
        (void)tokenizer->token_bytes(id);
      }
      joined += stream.flush();
      if (joined != tokenizer->decode(*ids, parse)) std::abort();
    }
  }
}

}  // namespace xgen::fuzz
