#include "text/token_decoder.h"

#include <algorithm>

#include "text/token_model.h"
#include "text/unicode.h"

namespace xgen::text {
namespace {

using Kind = DecoderStage::Kind;

std::string replaced(std::string_view text, std::string_view pattern, std::string_view content) {
  std::string out;
  if (pattern.empty()) return std::string(text);
  std::size_t from = 0;
  for (std::size_t at = text.find(pattern); at != std::string_view::npos; at = text.find(pattern, from)) {
    out.append(text.substr(from, at - from)).append(content);
    from = at + pattern.size();
  }
  return out.append(text.substr(from));
}

// What `tokenizers` calls cleanup, in its order.
std::string cleaned(std::string text) {
  constexpr std::string_view rules[][2] = {{" .", "."},   {" ?", "?"},     {" !", "!"},    {" ,", ","},
                                           {" ' ", "'"},  {" n't", "n't"}, {" 'm", "'m"},  {" do not", " don't"},
                                           {" 's", "'s"}, {" 've", "'ve"}, {" 're", "'re"}};
  for (const auto& rule : rules) {
    if (text.find(rule[0]) != std::string::npos) text = replaced(text, rule[0], rule[1]);
  }
  return text;
}

int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return -1;
}

// "<0x0A>" -> 10; -1 for anything else.
int byte_token(std::string_view piece) {
  if (piece.size() != 6 || !piece.starts_with("<0x") || piece[5] != '>') return -1;
  const int high = hex_digit(piece[3]), low = hex_digit(piece[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

}  // namespace

DecoderRun::DecoderRun(const std::vector<DecoderStage>& stages, bool midway) : stages_(stages), midway_(midway) {
  states_.resize(stages.size());
  reset();
}

void DecoderRun::reset() {
  for (State& state : states_) {
    state.first = !midway_;
    state.open = state.has_held = false;
    state.held.clear();
    state.last.clear();
    state.strip_left = 0;
  }
}

void DecoderRun::push(std::string_view piece, std::string& out) { feed(0, piece, true, true, out); }

void DecoderRun::flush(std::string& out) {
  for (std::size_t i = 0; i < stages_.size(); ++i) {
    State& state = states_[i];
    switch (stages_[i].kind) {
      case Kind::byte_level:
      case Kind::byte_fallback:
      case Kind::fuse:
        if (state.open) feed(i + 1, {}, false, true, out);
        break;
      case Kind::bpe:
        if (state.has_held) feed(i + 1, replaced(state.held, stages_[i].pattern, midway_ ? " " : ""), true, true, out);
        break;
      default:
        break;
    }
  }
  reset();
}

// Replaces in a piece that comes in fragments: keeps back the longest end that may still become the pattern.
void DecoderRun::replace(std::size_t stage, std::string_view text, bool ends, std::string_view pattern,
                         std::string_view content, bool begins, std::string& out) {
  State& state = states_[stage];
  if (begins && ends && text.find(pattern) == std::string_view::npos) {
    feed(stage + 1, text, true, true, out);
    return;
  }
  state.held += text;
  std::string done;
  std::string_view rest = state.held;
  for (std::size_t at = rest.find(pattern); at != std::string_view::npos; at = rest.find(pattern)) {
    done.append(rest.substr(0, at)).append(content);
    rest.remove_prefix(at + pattern.size());
  }
  std::size_t keep = 0;
  if (!ends) {
    for (keep = std::min(rest.size(), pattern.size() - 1); keep > 0; --keep) {
      if (pattern.starts_with(rest.substr(rest.size() - keep))) break;
    }
  }
  done.append(rest.substr(0, rest.size() - keep));
  state.held = std::string(rest.substr(rest.size() - keep));
  feed(stage + 1, done, begins, ends, out);
}

void DecoderRun::feed(std::size_t stage, std::string_view text, bool begins, bool ends, std::string& out) {
  if (stage == stages_.size()) {
    out += text;
    return;
  }
  const DecoderStage& s = stages_[stage];
  State& state = states_[stage];
  switch (s.kind) {
    case Kind::fuse: {
      const bool first = !state.open;
      state.open = true;
      feed(stage + 1, text, first, false, out);
      return;
    }
    case Kind::replace:
      if (s.pattern.empty()) return feed(stage + 1, text, begins, ends, out);
      return replace(stage, text, ends, s.pattern, s.content, begins, out);
    case Kind::metaspace: {
      const bool drop = s.drop_first && state.first;
      if (ends) state.first = false;
      return replace(stage, text, ends, s.pattern, drop ? "" : " ", begins, out);
    }
    case Kind::strip: {
      if (s.pattern.empty()) return feed(stage + 1, text, begins, ends, out);
      // Midway through a text that is one fused piece there is no beginning to strip.
      if (begins) state.strip_left = midway_ ? 0 : s.start;
      std::string joined;
      if (!state.held.empty()) {
        joined = state.held.append(text);
        text = joined;
        state.held.clear();
      }
      while (state.strip_left > 0 && text.starts_with(s.pattern)) {
        text.remove_prefix(s.pattern.size());
        --state.strip_left;
      }
      if (!text.empty()) state.strip_left = 0;
      if (s.stop > 0) {
        std::size_t keep = 0;
        for (std::size_t n = 0; n < s.stop && text.substr(0, text.size() - keep).ends_with(s.pattern); ++n) {
          keep += s.pattern.size();
        }
        if (!ends) state.held = std::string(text.substr(text.size() - keep));
        if (!ends || !midway_) text.remove_suffix(keep);
      }
      return feed(stage + 1, text, begins, ends, out);
    }
    default:
      break;
  }
  // The other kinds look at whole pieces.
  if (begins && ends) return whole(stage, text, out);
  if (begins) state.last.clear();
  state.last += text;
  if (ends) {
    const std::string piece = std::move(state.last);
    state.last.clear();
    whole(stage, piece, out);
  }
}

void DecoderRun::whole(std::size_t stage, std::string_view piece, std::string& out) {
  const DecoderStage& s = stages_[stage];
  State& state = states_[stage];
  const bool first = state.first;
  state.first = false;
  switch (s.kind) {
    case Kind::byte_level: {
      std::string bytes;
      for (std::size_t i = 0; i < piece.size();) {
        const int byte = byte_level_byte(next_code_point(piece, i));
        if (byte < 0) {
          bytes = piece;  // not spelt in the alphabet: an added token, which stands for itself
          break;
        }
        bytes += static_cast<char>(byte);
      }
      const bool begins = !state.open;
      state.open = true;
      return feed(stage + 1, bytes, begins, false, out);
    }
    case Kind::byte_fallback: {
      const int byte = byte_token(piece);
      if (byte >= 0) {
        const char c = static_cast<char>(byte);
        const bool begins = !state.open;
        state.open = true;
        return feed(stage + 1, {&c, 1}, begins, false, out);
      }
      if (state.open) feed(stage + 1, {}, false, true, out);
      state.open = false;
      return feed(stage + 1, piece, true, true, out);
    }
    case Kind::replace_regex: {
      std::vector<Span> matches;
      std::string text;
      std::size_t from = 0;
      if (!piece.empty() && s.regex->find_all(piece, matches)) {
        for (const Span& m : matches) {
          text.append(piece.substr(from, m.begin - from)).append(s.content);
          from = m.end;
        }
      }
      text.append(piece.substr(from));
      return feed(stage + 1, text, true, true, out);
    }
    case Kind::word_piece: {
      std::string text;
      if (!first && piece.starts_with(s.pattern)) {
        text = piece.substr(s.pattern.size());
      } else {
        if (!first) text = " ";
        text += piece;
      }
      return feed(stage + 1, s.cleanup ? cleaned(std::move(text)) : text, true, true, out);
    }
    case Kind::join: {
      std::string text(first ? "" : " ");
      return feed(stage + 1, text.append(piece), true, true, out);
    }
    case Kind::bpe: {
      if (state.has_held) feed(stage + 1, replaced(state.held, s.pattern, " "), true, true, out);
      state.has_held = true;
      state.held = piece;
      return;
    }
    case Kind::ctc: {
      if (state.has_held && state.held == piece) return;
      state.has_held = true;
      state.held = piece;
      std::string text = replaced(piece, s.pattern, "");
      if (s.cleanup) text = replaced(cleaned(std::move(text)), s.content, " ");
      if (!text.empty()) feed(stage + 1, text, true, true, out);
      return;
    }
    default:
      return;
  }
}

}  // namespace xgen::text
