// Hugging Face's tokenizer.json, as written by the `tokenizers` library (format version 1.0).
#include <boost/json.hpp>
#include <boost/json/basic_parser_impl.hpp>
#include <cmath>

#include "base/json.h"
#include "text/json_fields.h"
#include "text/tokenizer_parts.h"
#include "text/unicode.h"
#include "text/word_patterns.h"

namespace xgen::text {
namespace {

namespace json = boost::json;

// Reads the document without making a DOM of its bulk: model.vocab goes straight into a Vocab and model.merges into
// one arena, everything else into a boost::json::value (where those two are null).
class Handler {
 public:
  static constexpr std::size_t max_object_size = std::size_t{1} << 24;
  static constexpr std::size_t max_array_size = std::size_t{1} << 24;
  static constexpr std::size_t max_key_size = std::size_t{1} << 20;
  static constexpr std::size_t max_string_size = std::size_t{1} << 26;

  Handler(Vocab& out_vocab, std::size_t bytes) : vocab(out_vocab) {
    stack.reset(json::make_shared_resource<json::monotonic_resource>());
    // Typical files spend 30 to 60 bytes on a piece and its merge.
    vocab.reserve(bytes / 40, bytes / 4);
    merge_text.reserve(bytes / 4);
    merges.reserve(bytes / 30);
  }

  struct Merge {
    std::uint32_t begin, left, right;  // bytes
  };
  Vocab& vocab;
  std::vector<double> scores;  // Unigram
  std::string merge_text;
  std::vector<Merge> merges;
  bool has_vocab = false;
  bool unigram_list = false;
  std::string problem;
  json::value_stack stack;

  using Error = json::error_code;
  // The lines "left right" of a merges.txt.
  Status read_merges(std::string_view text) {
    for (std::size_t number = 1; !text.empty(); ++number) {
      const std::size_t end = std::min(text.find('\n'), text.size());
      std::string_view line = text.substr(0, end);
      text.remove_prefix(std::min(end + 1, text.size()));
      if (line.ends_with('\r')) line.remove_suffix(1);
      if (line.empty() || (number == 1 && line.starts_with("#version"))) continue;
      const std::size_t blank = line.find(' ');
      if (blank == std::string_view::npos || line.find(' ', blank + 1) != std::string_view::npos) {
        return make_error(ErrorCode::invalid_argument,
                          "merges.txt line " + std::to_string(number) + " is not two pieces with a blank between");
      }
      if (merge_text.size() + line.size() > 0xFFFFFFFFu)
        return make_error(ErrorCode::too_large, "merges.txt is too long");
      merges.push_back({static_cast<std::uint32_t>(merge_text.size()), static_cast<std::uint32_t>(blank),
                        static_cast<std::uint32_t>(line.size() - blank - 1)});
      merge_text.append(line.substr(0, blank)).append(line.substr(blank + 1));
    }
    return {};
  }

  bool on_document_begin(Error&) { return true; }
  bool on_document_end(Error&) { return true; }
  bool on_comment_part(json::string_view, Error&) { return true; }
  bool on_comment(json::string_view, Error&) { return true; }

  bool on_object_begin(Error& ec) {
    if (mode_ != Mode::dom) return unexpected("an object", ec);
    ++depth_;
    if (depth_ == 3 && key1_ == "model" && key2_ == "vocab") {
      mode_ = Mode::vocab_object;
      has_vocab = true;
    }
    return true;
  }
  bool on_object_end(std::size_t n, Error&) {
    --depth_;
    if (mode_ == Mode::vocab_object) {
      mode_ = Mode::dom;
      stack.push_null();
    } else {
      stack.push_object(n);
    }
    return true;
  }
  bool on_array_begin(Error& ec) {
    if (mode_ == Mode::vocab_object) return unexpected("an array", ec);
    ++depth_;
    if (mode_ == Mode::dom && depth_ == 3 && key1_ == "model" && (key2_ == "vocab" || key2_ == "merges")) {
      mode_ = key2_ == "vocab" ? Mode::vocab_list : Mode::merges;
      if (mode_ == Mode::vocab_list) has_vocab = unigram_list = true;
    } else if (mode_ != Mode::dom) {
      if (depth_ > 4) return unexpected("an array", ec);
      part_ = 0;
    }
    return true;
  }
  bool on_array_end(std::size_t n, Error& ec) {
    --depth_;
    if (mode_ == Mode::dom) {
      stack.push_array(n);
    } else if (depth_ == 3) {
      if (part_ != 2) return fail("is not a pair", ec);
      if (mode_ == Mode::vocab_list && !vocab.add(piece_, static_cast<std::int64_t>(scores.size()) - 1)) {
        return fail("holds too many pieces", ec);
      }
    } else {
      mode_ = Mode::dom;
      stack.push_null();
    }
    return true;
  }

  bool on_key_part(json::string_view s, std::size_t, Error&) {
    if (mode_ == Mode::dom) {
      stack.push_chars(s);
      if (depth_ <= 2) text_.append(s.data(), s.size());
    } else {
      text_.append(s.data(), s.size());
    }
    return true;
  }
  bool on_key(json::string_view s, std::size_t, Error&) {
    if (mode_ == Mode::vocab_object) {
      piece_.assign(text_).append(s.data(), s.size());
      text_.clear();
      return true;
    }
    stack.push_key(s);
    if (depth_ == 1) key1_ = text_.append(s.data(), s.size());
    if (depth_ == 2) key2_ = text_.append(s.data(), s.size());
    text_.clear();
    return true;
  }
  bool on_string_part(json::string_view s, std::size_t, Error&) {
    if (mode_ == Mode::dom) {
      stack.push_chars(s);
    } else {
      text_.append(s.data(), s.size());
    }
    return true;
  }
  bool on_string(json::string_view s, std::size_t, Error& ec) {
    switch (mode_) {
      case Mode::dom:
        stack.push_string(s);
        return true;
      case Mode::vocab_object:
        return unexpected("a string", ec);
      case Mode::vocab_list:
        if (depth_ != 4 || part_ != 0) return unexpected("a string", ec);
        piece_.assign(text_).append(s.data(), s.size());
        ++part_;
        break;
      case Mode::merges:
        if (merge_text.size() + text_.size() + s.size() > 0xFFFFFFFFu) return fail("is too long", ec);
        if (depth_ == 3) {
          const std::size_t begin = merge_text.size();
          merge_text.append(text_).append(s.data(), s.size());
          const std::string_view both = std::string_view(merge_text).substr(begin);
          const std::size_t blank = both.find(' ');
          if (blank == std::string_view::npos || both.find(' ', blank + 1) != std::string_view::npos) {
            return fail("'" + std::string(both.substr(0, 100)) + "' is not two pieces with a blank between", ec);
          }
          const std::size_t right = both.size() - blank - 1;
          merge_text.erase(begin + blank, 1);
          merges.push_back({static_cast<std::uint32_t>(begin), static_cast<std::uint32_t>(blank),
                            static_cast<std::uint32_t>(right)});
        } else {
          const auto length = static_cast<std::uint32_t>(text_.size() + s.size());
          if (part_ == 0) {
            merges.push_back({static_cast<std::uint32_t>(merge_text.size()), length, 0});
          } else if (part_ == 1) {
            merges.back().right = length;
          } else {
            return fail("is not a pair", ec);
          }
          merge_text.append(text_).append(s.data(), s.size());
          ++part_;
        }
        break;
    }
    text_.clear();
    return true;
  }
  bool on_number_part(json::string_view, Error&) { return true; }
  bool on_int64(std::int64_t value, json::string_view, Error& ec) {
    return number(value, static_cast<double>(value), ec);
  }
  bool on_uint64(std::uint64_t value, json::string_view, Error& ec) {
    if (mode_ == Mode::vocab_list) return number(0, static_cast<double>(value), ec);
    if (mode_ != Mode::dom) return fail("has an id that is too large", ec);
    stack.push_uint64(value);
    return true;
  }
  bool on_double(double value, json::string_view, Error& ec) {
    if (mode_ == Mode::vocab_list) return number(0, value, ec);
    if (mode_ != Mode::dom) return unexpected("a fraction", ec);
    stack.push_double(value);
    return true;
  }
  bool on_bool(bool value, Error& ec) {
    if (mode_ != Mode::dom) return unexpected("true or false", ec);
    stack.push_bool(value);
    return true;
  }
  bool on_null(Error& ec) {
    if (mode_ != Mode::dom) return unexpected("null", ec);
    stack.push_null();
    return true;
  }

 private:
  enum class Mode { dom, vocab_object, vocab_list, merges };

  bool number(std::int64_t id, double value, Error& ec) {
    switch (mode_) {
      case Mode::dom:
        stack.push_int64(id);
        return true;
      case Mode::vocab_object:
        if (vocab.add(piece_, id)) return true;
        return fail("gives '" + piece_.substr(0, 100) + "' the id " + std::to_string(id) + ", which is out of range",
                    ec);
      case Mode::vocab_list:
        if (depth_ != 4 || part_ != 1) return unexpected("a number", ec);
        scores.push_back(value);
        ++part_;
        return true;
      case Mode::merges:
        break;
    }
    return unexpected("a number", ec);
  }
  std::string where() const {
    if (mode_ == Mode::merges) return "model.merges[" + std::to_string(merges.size()) + "]";
    if (mode_ == Mode::vocab_list) return "model.vocab[" + std::to_string(scores.size()) + "]";
    return "model.vocab";
  }
  bool fail(const std::string& what, Error& ec) {
    problem = where() + " " + what;
    ec = json::make_error_code(json::error::syntax);
    return false;
  }
  bool unexpected(std::string_view what, Error& ec) { return fail("holds " + std::string(what), ec); }

  Mode mode_ = Mode::dom;
  int depth_ = 0;
  int part_ = 0;
  std::string key1_, key2_, text_, piece_;
};

// ---- the sections ----

Result<std::string> decode_base64(std::string_view text, const std::string& where) {
  std::string out;
  out.reserve(text.size() * 3 / 4);
  std::uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    int value;
    if (c >= 'A' && c <= 'Z') {
      value = c - 'A';
    } else if (c >= 'a' && c <= 'z') {
      value = c - 'a' + 26;
    } else if (c >= '0' && c <= '9') {
      value = c - '0' + 52;
    } else if (c == '+') {
      value = 62;
    } else if (c == '/') {
      value = 63;
    } else if (c == '=') {
      break;
    } else {
      return make_error(ErrorCode::invalid_argument, where + " is not base64");
    }
    bits = (bits << 6) | static_cast<std::uint32_t>(value);
    if (++count == 4) {
      out += static_cast<char>(bits >> 16);
      out += static_cast<char>(bits >> 8);
      out += static_cast<char>(bits);
      bits = 0;
      count = 0;
    }
  }
  if (count == 3) {
    out += static_cast<char>(bits >> 10);
    out += static_cast<char>(bits >> 2);
  } else if (count == 2) {
    out += static_cast<char>(bits >> 4);
  }
  return out;
}

// "pattern": {"String": "x"} or {"Regex": "x"}. Sets exactly one of text and regex.
Status read_pattern(const Fields& f, std::string& text, std::optional<Regex>& regex) {
  Fields pattern;
  if (Status s = f.object("pattern", pattern); !s) return s;
  if (pattern.has("String")) return pattern.string("String", text);
  std::string source;
  if (Status s = pattern.string("Regex", source); !s) return s;
  auto compiled = Regex::compile(source, RegexFlavour::oniguruma);
  if (!compiled) return f.error("pattern: " + compiled.error().message);
  regex = *compiled;
  return {};
}

Status read_normalizer(const Fields& f, Normalizer& out, int depth = 0);

// Calls read(child) for each element of the list `key`.
template <class F>
Status for_each_child(const Fields& f, std::string_view key, F&& read) {
  std::vector<Fields> children;
  if (Status s = f.objects(key, children); !s) return s;
  for (const Fields& child : children) {
    if (Status s = read(child); !s) return s;
  }
  return {};
}

constexpr int kMaxNesting = 16;

Status read_normalizer(const Fields& f, Normalizer& out, int depth) {
  using Kind = NormalizerStep::Kind;
  if (depth > kMaxNesting) return f.error("is nested too deep");
  std::string type;
  if (Status s = f.string("type", type); !s) return s;
  if (type == "Sequence") {
    return for_each_child(f, "normalizers", [&](const Fields& c) { return read_normalizer(c, out, depth + 1); });
  }
  NormalizerStep step;
  Status s;
  if (type == "NFC") {
    step.kind = Kind::nfc;
  } else if (type == "NFD") {
    step.kind = Kind::nfd;
  } else if (type == "NFKC") {
    step.kind = Kind::nfkc;
  } else if (type == "NFKD") {
    step.kind = Kind::nfkd;
  } else if (type == "Lowercase") {
    step.kind = Kind::lowercase;
  } else if (type == "StripAccents") {
    step.kind = Kind::strip_accents;
  } else if (type == "Nmt") {
    step.kind = Kind::nmt;
  } else if (type == "ByteLevel") {
    step.kind = Kind::byte_level;
  } else if (type == "Strip") {
    step.kind = Kind::strip;
    s = f.boolean("strip_left", step.left);
    if (s) s = f.boolean("strip_right", step.right);
  } else if (type == "Prepend") {
    step.kind = Kind::prepend;
    s = f.string("prepend", step.content);
  } else if (type == "Append") {
    step.kind = Kind::append;
    s = f.string("append", step.content);
  } else if (type == "Replace") {
    s = read_pattern(f, step.pattern, step.regex);
    if (s) s = f.string("content", step.content);
    step.kind = step.regex ? Kind::replace_regex : Kind::replace;
  } else if (type == "BertNormalizer") {
    step.kind = Kind::bert;
    s = f.boolean("clean_text", step.clean_text);
    if (s) s = f.boolean("handle_chinese_chars", step.handle_chinese_chars);
    if (s) s = f.boolean("lowercase", step.lowercase);
    step.strip_accents = step.lowercase;
    if (s) s = f.boolean("strip_accents", step.strip_accents);
  } else if (type == "Precompiled") {
    step.kind = Kind::precompiled;
    std::string encoded;
    if (f.has("precompiled_charsmap")) s = f.string("precompiled_charsmap", encoded);
    if (!s) return s;
    if (encoded.empty()) return {};
    auto blob = decode_base64(encoded, f.where() + ".precompiled_charsmap");
    if (!blob) return blob.error();
    auto map = Charsmap::parse(*blob);
    if (!map) return f.error(map.error().message);
    step.charsmap = std::make_shared<const Charsmap>(std::move(*map));
  } else {
    return f.unsupported("type", type);
  }
  if (!s) return s;
  out.steps.push_back(std::move(step));
  return {};
}

Status read_behaviour(const Fields& f, SplitBehaviour& out) {
  std::string name;
  if (!f.has("behavior")) return {};
  if (Status s = f.string("behavior", name); !s) return s;
  if (name == "Removed") {
    out = SplitBehaviour::removed;
  } else if (name == "Isolated") {
    out = SplitBehaviour::isolated;
  } else if (name == "MergedWithPrevious") {
    out = SplitBehaviour::merged_with_previous;
  } else if (name == "MergedWithNext") {
    out = SplitBehaviour::merged_with_next;
  } else if (name == "Contiguous") {
    out = SplitBehaviour::contiguous;
  } else {
    return f.unsupported("behavior", name);
  }
  return {};
}

// prepend_scheme, or what older files write instead: add_prefix_space.
Status read_prepend_scheme(const Fields& f, PrependScheme& out) {
  bool add = true;
  if (Status s = f.boolean("add_prefix_space", add); !s) return s;
  out = add ? PrependScheme::always : PrependScheme::never;
  if (!f.has("prepend_scheme")) return {};
  std::string name;
  if (Status s = f.string("prepend_scheme", name); !s) return s;
  if (name == "always") {
    out = PrependScheme::always;
  } else if (name == "never") {
    out = PrependScheme::never;
  } else if (name == "first") {
    out = PrependScheme::first;
  } else {
    return f.unsupported("prepend_scheme", name);
  }
  return {};
}

Status read_pre_tokenizer(const Fields& f, PreTokenizer& out, int depth = 0) {
  using Kind = PreTokenizerStep::Kind;
  if (depth > kMaxNesting) return f.error("is nested too deep");
  std::string type;
  if (Status s = f.string("type", type); !s) return s;
  if (type == "Sequence") {
    return for_each_child(f, "pretokenizers", [&](const Fields& c) { return read_pre_tokenizer(c, out, depth + 1); });
  }
  PreTokenizerStep step;
  Status s;
  const auto use_regex = [&](Result<Regex> regex) -> Status {
    if (!regex) return f.error(regex.error().message);
    step.regex = *regex;
    return {};
  };
  if (type == "ByteLevel") {
    step.kind = Kind::byte_level;
    bool regex = true;
    step.add_prefix_space = true;
    s = f.boolean("add_prefix_space", step.add_prefix_space);
    if (s) s = f.boolean("use_regex", regex);
    if (s && regex) s = use_regex(gpt2_regex());
  } else if (type == "Whitespace") {
    step.kind = Kind::split_regex;
    step.behaviour = SplitBehaviour::removed;
    step.invert = true;
    s = use_regex(Regex::compile(R"(\w+|[^\w\s]+)", RegexFlavour::rust));
  } else if (type == "WhitespaceSplit") {
    step.kind = Kind::whitespace;
  } else if (type == "BertPreTokenizer") {
    step.kind = Kind::bert;
  } else if (type == "Metaspace") {
    step.kind = Kind::metaspace;
    s = f.string("replacement", step.pattern);
    if (s) s = read_prepend_scheme(f, step.prepend);
    if (s) s = f.boolean("split", step.split);
    if (s && step.pattern.empty()) s = f.error("replacement is empty");
  } else if (type == "Split") {
    s = read_pattern(f, step.pattern, step.regex);
    step.kind = step.regex ? Kind::split_regex : Kind::split_string;
    if (s) s = read_behaviour(f, step.behaviour);
    if (s) s = f.boolean("invert", step.invert);
  } else if (type == "Punctuation") {
    step.kind = Kind::punctuation;
    s = read_behaviour(f, step.behaviour);
  } else if (type == "Digits") {
    step.kind = Kind::digits;
    s = f.boolean("individual_digits", step.individual);
  } else if (type == "CharDelimiterSplit") {
    step.kind = Kind::split_string;
    step.behaviour = SplitBehaviour::removed;
    s = f.string("delimiter", step.pattern);
  } else if (type == "UnicodeScripts") {
    step.kind = Kind::unicode_scripts;
    step.behaviour = SplitBehaviour::removed;
    step.invert = true;
    s = use_regex(script_runs_regex());
  } else if (type == "FixedLength") {
    step.kind = Kind::fixed_length;
    std::int64_t length = 5;
    s = f.integer("length", length);
    if (s && length < 1) s = f.error("length must be at least 1");
    step.length = static_cast<std::size_t>(length);
  } else {
    return f.unsupported("type", type);
  }
  if (!s) return s;
  out.steps.push_back(std::move(step));
  return {};
}

Status read_decoder(const Fields& f, std::vector<DecoderStage>& out, int depth = 0) {
  using Kind = DecoderStage::Kind;
  if (depth > kMaxNesting) return f.error("is nested too deep");
  std::string type;
  if (Status s = f.string("type", type); !s) return s;
  if (type == "Sequence") {
    return for_each_child(f, "decoders", [&](const Fields& c) { return read_decoder(c, out, depth + 1); });
  }
  DecoderStage stage;
  Status s;
  if (type == "ByteLevel") {
    stage.kind = Kind::byte_level;
  } else if (type == "ByteFallback") {
    stage.kind = Kind::byte_fallback;
  } else if (type == "Fuse") {
    stage.kind = Kind::fuse;
  } else if (type == "Replace") {
    s = read_pattern(f, stage.pattern, stage.regex);
    stage.kind = stage.regex ? Kind::replace_regex : Kind::replace;
    if (s) s = f.string("content", stage.content);
  } else if (type == "Strip") {
    stage.kind = Kind::strip;
    std::int64_t start = 0, stop = 0;
    s = f.string("content", stage.pattern);
    if (s) s = f.integer("start", start);
    if (s) s = f.integer("stop", stop);
    if (s && (start < 0 || stop < 0 || start > 1'000'000 || stop > 1'000'000))
      s = f.error("start or stop is out of range");
    stage.start = static_cast<std::size_t>(start);
    stage.stop = static_cast<std::size_t>(stop);
  } else if (type == "Metaspace") {
    stage.kind = Kind::metaspace;
    PrependScheme scheme = PrependScheme::always;
    s = f.string("replacement", stage.pattern);
    if (s) s = read_prepend_scheme(f, scheme);
    if (s && stage.pattern.empty()) s = f.error("replacement is empty");
    stage.drop_first = scheme != PrependScheme::never;
  } else if (type == "WordPiece") {
    stage.kind = Kind::word_piece;
    stage.pattern = "##";
    stage.cleanup = true;
    s = f.optional_string("prefix", stage.pattern);
    if (s) s = f.boolean("cleanup", stage.cleanup);
  } else if (type == "BPEDecoder") {
    stage.kind = Kind::bpe;
    stage.pattern = "</w>";
    s = f.optional_string("suffix", stage.pattern);
  } else if (type == "CTC") {
    stage.kind = Kind::ctc;
    stage.pattern = "<pad>";
    stage.content = "|";
    stage.cleanup = true;
    s = f.optional_string("pad_token", stage.pattern);
    if (s) s = f.optional_string("word_delimiter_token", stage.content);
    if (s) s = f.boolean("cleanup", stage.cleanup);
  } else {
    return f.unsupported("type", type);
  }
  if (!s) return s;
  out.push_back(std::move(stage));
  return {};
}

// ["[SEP]", 102]
Status read_named_id(const Fields& f, std::string_view key, std::int32_t& id) {
  const json::value* v = f.find(key);
  const json::array* pair = v == nullptr ? nullptr : v->if_array();
  if (pair == nullptr || pair->size() != 2 || !(*pair)[0].is_string() || !(*pair)[1].is_int64()) {
    return f.error(std::string(key) + " must be a pair of token and id");
  }
  const std::int64_t value = (*pair)[1].as_int64();
  if (value < 0 || value > Vocab::kMaxId) return f.error(std::string(key) + " has an id out of range");
  id = static_cast<std::int32_t>(value);
  return {};
}

// Only what is put around a single text matters here; several in sequence wrap each other.
Status read_post_processor(const Fields& f, TokenizerParts& parts, int depth = 0) {
  if (depth > kMaxNesting) return f.error("is nested too deep");
  std::string type;
  if (Status s = f.string("type", type); !s) return s;
  if (type == "Sequence") {
    return for_each_child(f, "processors", [&](const Fields& c) { return read_post_processor(c, parts, depth + 1); });
  }
  if (type == "ByteLevel") return {};  // it moves offsets only
  std::vector<std::int32_t> before, after;
  if (type == "BertProcessing" || type == "RobertaProcessing") {
    before.resize(1);
    after.resize(1);
    if (Status s = read_named_id(f, "cls", before[0]); !s) return s;
    if (Status s = read_named_id(f, "sep", after[0]); !s) return s;
  } else if (type == "TemplateProcessing") {
    std::vector<Fields> single;
    if (Status s = f.objects("single", single); !s) return s;
    int texts = 0;
    for (const Fields& item : single) {
      if (item.has("Sequence")) {
        ++texts;
        continue;
      }
      Fields special;
      std::string id;
      if (Status s = item.object("SpecialToken", special); !s) return s;
      if (Status s = special.string("id", id); !s) return s;
      Fields all, token;
      if (Status s = f.object("special_tokens", all); !s) return s;
      if (Status s = all.object(id, token); !s) return s;
      std::vector<std::int64_t> ids;
      if (Status s = token.integers("ids", ids); !s) return s;
      for (const std::int64_t value : ids) {
        if (value < 0 || value > Vocab::kMaxId)
          return token.error("ids: " + std::to_string(value) + " is out of range");
        (texts == 0 ? before : after).push_back(static_cast<std::int32_t>(value));
      }
    }
    if (texts != 1) return f.error("single must hold the text exactly once");
  } else {
    return f.unsupported("type", type);
  }
  constexpr std::size_t kMaxAround = 4096;
  if (parts.prefix.size() + before.size() + parts.suffix.size() + after.size() > kMaxAround) {
    return f.error("adds too many tokens");
  }
  parts.prefix.insert(parts.prefix.begin(), before.begin(), before.end());
  parts.suffix.insert(parts.suffix.end(), after.begin(), after.end());
  return {};
}

Status read_model(const Fields& f, Handler& handler, TokenizerParts& parts) {
  std::string type;
  Vocab& vocab = parts.vocab;
  if (Status s = f.optional_string("type", type); !s) return s;
  // Older files do not name the model.
  if (type.empty()) {
    type = handler.unigram_list                 ? "Unigram"
           : f.raw().contains("merges")         ? "BPE"
           : f.has("max_input_chars_per_word")  ? "WordPiece"
           : f.has("continuing_subword_prefix") ? "WordPiece"
                                                : "WordLevel";
  }
  if (!handler.has_vocab) return f.error("vocab is missing");
  if (f.has("merges")) return f.error("merges must be a list");
  if (handler.unigram_list != (type == "Unigram")) return f.error("vocab has the wrong shape for the type " + type);

  bool byte_fallback = false;
  std::string unk;
  if (Status s = f.boolean("byte_fallback", byte_fallback); !s) return s;
  if (Status s = f.optional_string("unk_token", unk); !s) return s;
  std::int32_t unk_id = unk.empty() ? kNoToken : vocab.find(unk);

  if (type == "Unigram") {
    UnigramModel::Options options;
    std::int64_t id = -1;
    if (Status s = f.integer("unk_id", id); !s) return s;
    if (id >= vocab.size()) return f.error("unk_id " + std::to_string(id) + " is not in the vocabulary");
    for (const double score : handler.scores) {
      if (!std::isfinite(score)) return f.error("vocab holds a score that is no finite number");
    }
    options.unknown.id = id < 0 ? kNoToken : static_cast<std::int32_t>(id);
    options.unknown.fuse = true;
    options.unknown.byte_fallback = byte_fallback;
    options.unknown.find_bytes(vocab);
    parts.unk = options.unknown.id >= 0 ? std::optional(options.unknown.id) : std::nullopt;
    parts.model = std::make_unique<UnigramModel>(vocab, std::move(handler.scores), std::move(options));
    return {};
  }
  if (unk_id >= 0) parts.unk = unk_id;
  if (type == "WordPiece") {
    WordPieceModel::Options options;
    options.unknown = unk_id;
    std::int64_t max_chars = 100;
    if (Status s = f.optional_string("continuing_subword_prefix", options.subword_prefix); !s) return s;
    if (Status s = f.integer("max_input_chars_per_word", max_chars); !s) return s;
    if (max_chars < 0 || max_chars > 100'000) return f.error("max_input_chars_per_word is out of range");
    options.max_chars = static_cast<std::size_t>(max_chars);
    parts.model = std::make_unique<WordPieceModel>(vocab, std::move(options));
    return {};
  }
  if (type == "WordLevel") {
    parts.model = std::make_unique<WordLevelModel>(vocab, unk_id);
    return {};
  }
  if (type != "BPE") return f.unsupported("type", type);

  double dropout = 0;
  BpeModel::Options options;
  if (Status s = f.number("dropout", dropout); !s) return s;
  if (dropout != 0) {
    return make_error(ErrorCode::unsupported, f.where() + ".dropout: random merges are for training only");
  }
  if (Status s = f.boolean("fuse_unk", options.unknown.fuse); !s) return s;
  if (Status s = f.boolean("ignore_merges", options.ignore_merges); !s) return s;
  if (Status s = f.optional_string("continuing_subword_prefix", options.subword_prefix); !s) return s;
  if (Status s = f.optional_string("end_of_word_suffix", options.word_suffix); !s) return s;
  options.unknown.id = unk_id;
  options.unknown.byte_fallback = byte_fallback;
  if (byte_fallback) options.unknown.find_bytes(vocab);
  // Where the byte alphabet comes last and is complete, the model works on the bytes themselves.
  auto& steps = parts.pre_tokenizer.steps;
  if (!steps.empty() && steps.back().kind == PreTokenizerStep::Kind::byte_level && options.subword_prefix.empty() &&
      options.word_suffix.empty()) {
    options.byte_level = true;
    for (unsigned b = 0; b < 256; ++b) {
      if (vocab.find(byte_level_char(static_cast<unsigned char>(b))) < 0) options.byte_level = false;
    }
    steps.back().map_bytes = !options.byte_level;
  }
  const std::size_t prefix = options.subword_prefix.size();
  auto model = std::make_unique<BpeModel>(vocab, std::move(options));
  const std::size_t count = handler.merges.size();
  std::vector<std::string_view> sides(count * 2);
  for (std::size_t i = 0; i < count; ++i) {
    const Handler::Merge& m = handler.merges[i];
    sides[2 * i] = std::string_view(handler.merge_text).substr(m.begin, m.left);
    sides[2 * i + 1] = std::string_view(handler.merge_text).substr(m.begin + m.left, m.right);
  }
  std::vector<std::int32_t> ids(count * 2);
  vocab.find_many(sides, ids);
  std::vector<BpeModel::NamedMerge> merges(count);
  std::string joined;
  std::int32_t guess = 0;  // merges mostly make the pieces in the order of their ids
  for (std::size_t i = 0; i < count; ++i) {
    const std::string_view left = sides[2 * i], right = sides[2 * i + 1];
    std::string_view whole(left.data(), left.size() + right.size());
    if (prefix > 0) whole = joined.assign(left).append(right.substr(std::min(prefix, right.size())));
    ++guess;
    if (guess >= vocab.size() || vocab.piece(guess) != whole) guess = vocab.find(whole);
    if (ids[2 * i] < 0 || ids[2 * i + 1] < 0 || guess < 0 || right.size() < prefix) {
      const std::string_view piece = ids[2 * i] < 0 ? left : guess < 0 && ids[2 * i + 1] >= 0 ? whole : right;
      return make_error(ErrorCode::invalid_argument, f.where() + ".merges[" + std::to_string(i) + "] names '" +
                                                         std::string(piece.substr(0, 100)) +
                                                         "', which is not in the vocabulary");
    }
    merges[i] = {ids[2 * i], ids[2 * i + 1], guess};
  }
  model->set_merges(merges);
  parts.model = std::move(model);
  return {};
}

Status add_listed_token(const Fields& f, TokenizerParts& parts) {
  AddedToken token;
  std::int64_t id = -1;
  if (Status s = f.integer("id", id); !s) return s;
  if (Status s = read_added_token(f, token); !s) return s;
  if (id < 0 || id > Vocab::kMaxId) return f.error("id " + std::to_string(id) + " is out of range");
  token.id = static_cast<std::int32_t>(id);
  return parts.add_token(std::move(token));
}

}  // namespace

Status read_added_token(const Fields& fields, AddedToken& token) {
  if (Status s = fields.string("content", token.content); !s) return s;
  if (Status s = fields.boolean("single_word", token.single_word); !s) return s;
  if (Status s = fields.boolean("lstrip", token.lstrip); !s) return s;
  if (Status s = fields.boolean("rstrip", token.rstrip); !s) return s;
  if (Status s = fields.boolean("special", token.special); !s) return s;
  token.normalized = !token.special;
  return fields.boolean("normalized", token.normalized);
}

DecoderStage decoder_stage(DecoderStage::Kind kind, std::string pattern, std::string content) {
  DecoderStage stage;
  stage.kind = kind;
  stage.pattern = std::move(pattern);
  stage.content = std::move(content);
  return stage;
}

namespace {

// `merges`: merges.txt, where they are not in the document.
Status load_document(std::string_view text, std::string_view merges, TokenizerParts& parts) {
  constexpr std::size_t kMaxFile = std::size_t{256} << 20;
  if (text.size() > kMaxFile) return make_error(ErrorCode::too_large, "is over 256 MiB");
  json::parse_options options;
  options.max_depth = 64;
  json::basic_parser<Handler> parser(options, parts.vocab, text.size());
  json::error_code ec;
  const std::size_t used = parser.write_some(false, text.data(), text.size(), ec);
  Handler& handler = parser.handler();
  if (!ec && used < text.size()) ec = json::make_error_code(json::error::extra_data);
  if (ec) {
    return make_error(ErrorCode::invalid_argument,
                      handler.problem.empty() ? "invalid JSON at byte " + std::to_string(used) + ": " + ec.message()
                                              : handler.problem);
  }
  const json::value document = handler.stack.release();
  const json::object* top = document.if_object();
  if (top == nullptr) return make_error(ErrorCode::invalid_argument, "is not a JSON object");
  const Fields root(*top, "");
  if (Status s = handler.read_merges(merges); !s) return s;
  parts.vocab.index();

  Fields section;
  if (root.has("normalizer")) {
    if (Status s = root.object("normalizer", section); !s) return s;
    if (Status s = read_normalizer(section, parts.normalizer); !s) return s;
  }
  if (root.has("pre_tokenizer")) {
    if (Status s = root.object("pre_tokenizer", section); !s) return s;
    if (Status s = read_pre_tokenizer(section, parts.pre_tokenizer); !s) return s;
  }
  if (Status s = root.object("model", section); !s) return s;
  if (Status s = read_model(section, handler, parts); !s) return s;
  if (root.has("added_tokens")) {
    Status s = for_each_child(root, "added_tokens", [&](const Fields& f) { return add_listed_token(f, parts); });
    if (!s) return s;
  }
  if (root.has("post_processor")) {
    if (Status s = root.object("post_processor", section); !s) return s;
    if (Status s = read_post_processor(section, parts); !s) return s;
  }
  if (root.has("decoder")) {
    if (Status s = root.object("decoder", section); !s) return s;
    if (Status s = read_decoder(section, parts.decoder); !s) return s;
  }
  if (parts.decoder.empty()) parts.decoder.push_back(decoder_stage(DecoderStage::Kind::join));
  return {};
}

}  // namespace

Status load_tokenizer_json(std::string_view text, TokenizerParts& parts) { return load_document(text, {}, parts); }

// Writes the tokenizer.json that transformers' converters would make of the older files, and loads that.
Status load_vocab_and_merges(std::string_view vocab_json, std::string_view merges, std::string_view config,
                             TokenizerParts& parts) {
  std::string cls;
  bool add_prefix_space = false;
  if (!config.empty()) {
    auto document = parse_json(config);
    if (!document || !document->is_object()) {
      return make_error(ErrorCode::invalid_argument, "tokenizer_config.json is not a JSON object");
    }
    const Fields f(document->get_object(), "tokenizer_config.json");
    if (Status s = f.optional_string("tokenizer_class", cls); !s) return s;
    if (Status s = f.boolean("add_prefix_space", add_prefix_space); !s) return s;
  }
  const bool qwen = cls.starts_with("Qwen2");
  json::object pattern{{"Regex", json::string_view((qwen ? kQwen2Pattern : kGpt2Pattern).data(),
                                                   (qwen ? kQwen2Pattern : kGpt2Pattern).size())}};
  json::object split{{"type", "Split"}, {"pattern", pattern}, {"behavior", "Isolated"}, {"invert", false}};
  json::object bytes{{"type", "ByteLevel"}, {"add_prefix_space", add_prefix_space}, {"use_regex", !qwen}};
  json::array steps;
  if (qwen) steps.push_back(split);
  steps.push_back(bytes);
  json::object head{{"pre_tokenizer", json::object{{"type", "Sequence"}, {"pretokenizers", steps}}},
                    {"decoder", json::object{{"type", "ByteLevel"}}}};
  if (qwen) head["normalizer"] = json::object{{"type", "NFC"}};
  std::string text = json::serialize(head);
  text.pop_back();
  text.append(",\"model\":{\"type\":\"BPE\",\"vocab\":").append(vocab_json).append("}}");
  if (Status s = load_document(text, merges, parts); !s) return s;
  if (cls.starts_with("Roberta")) {
    const std::int32_t bos = parts.vocab.find("<s>"), eos = parts.vocab.find("</s>");
    if (bos >= 0) parts.prefix.push_back(bos);
    if (eos >= 0) parts.suffix.push_back(eos);
  }
  return {};
}

}  // namespace xgen::text
