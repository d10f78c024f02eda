// TokenDecoder: pieces to text, one piece at a time. Stages as in tokenizer.json's "decoder", each written so that it
// never needs to take back what it passed on: the one-shot decode is the same machine, pushed and then flushed.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/regex.h"

namespace xgen::text {

struct DecoderStage {
  enum class Kind : std::uint8_t {
    byte_level,     // GPT-2's printable characters -> bytes, all pieces as one
    byte_fallback,  // "<0x0A>" -> its byte
    fuse,           // all pieces as one
    replace,        // pattern -> content
    replace_regex,  // regex -> content
    strip,          // up to start (stop) times `pattern` from the beginning (end) of each piece
    metaspace,      // pattern -> blank; drop_first: -> nothing in the first piece
    word_piece,     // pattern ("##") glues, other pieces get a blank before them
    bpe,            // pattern ("</w>") -> blank, or nothing in the last piece
    ctc,            // repeats and the pad token (pattern) go; content (the word delimiter) -> blank
    join,           // a blank between pieces: what `tokenizers` does without a decoder
  };
  Kind kind = Kind::fuse;
  std::string pattern, content;
  std::optional<Regex> regex;
  std::size_t start = 0, stop = 0;
  bool drop_first = false;
  bool cleanup = false;  // word_piece, ctc: no blank before . ? ! , n't 'm 's 've 're
};

// The running state of all stages. Not thread-safe. `stages` must outlive it.
class DecoderRun {
 public:
  // midway: the pieces come from inside a text, so no stage treats the first as a beginning or the last as an end.
  explicit DecoderRun(const std::vector<DecoderStage>& stages, bool midway = false);

  // Appends the bytes that became final; they may end inside a UTF-8 character.
  void push(std::string_view piece, std::string& out);
  // The rest; afterwards the run is as new.
  void flush(std::string& out);

 private:
  struct State {
    bool first = true;  // no piece seen yet
    bool open = false;  // a piece was begun towards the next stage and not ended
    bool has_held = false;
    std::string held;  // text that waits for what follows
    std::string last;  // ctc
    std::size_t strip_left = 0;
  };
  // A fragment of a piece arrives at a stage.
  void feed(std::size_t stage, std::string_view text, bool begins, bool ends, std::string& out);
  void whole(std::size_t stage, std::string_view piece, std::string& out);
  void replace(std::size_t stage, std::string_view text, bool ends, std::string_view pattern, std::string_view content,
               bool begins, std::string& out);
  void reset();

  const std::vector<DecoderStage>& stages_;
  std::vector<State> states_;
  bool midway_;
};

}  // namespace xgen::text
