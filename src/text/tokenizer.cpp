#include "text/tokenizer.h"

#include <algorithm>
#include <limits>

#include "base/utf8.h"
#include "text/gguf_vocab.h"
#include "text/tokenizer_parts.h"
#include "text/unicode.h"

namespace xgen::text {
namespace {

// Everything one encode() call needs, kept per thread so that its buffers are allocated once.
struct EncodeState {
  Scratch scratch;
  Words words;
  std::string normalized;
};

class Encoder {
 public:
  Encoder(const TokenizerParts& parts, EncodeState& state, bool parse_special, std::vector<TokenId>& ids)
      : parts_(parts), state_(state), parse_special_(parse_special), ids_(ids) {}

  Status run(std::string_view text) {
    return split(text, parts_.raw_matcher, [&](std::string_view gap) {
      const bool at_start = gap.data() == text.data();
      if (parts_.normalizer.steps.empty()) {
        return split(gap, parts_.normalized_matcher,
                     [&](std::string_view part) { return words(part, at_start && part.data() == gap.data()); });
      }
      state_.normalized = gap;
      if (Status s = parts_.normalizer.apply(state_.normalized); !s) return s;
      const std::string_view whole = state_.normalized;
      return split(whole, parts_.normalized_matcher,
                   [&](std::string_view part) { return words(part, at_start && part.data() == whole.data()); });
    });
  }

 private:
  // Takes the added tokens out of `text` (leftmost, then longest); gap(part) handles what lies between.
  template <class F>
  Status split(std::string_view text, const ByteTrie& matcher, F&& gap) {
    std::size_t done = 0;
    if (!matcher.empty()) {
      for (std::size_t i = 0; i < text.size();) {
        if (!matcher.may_begin(text[i])) {
          ++i;
          continue;
        }
        const ByteTrie::Match match = matcher.longest(text, i);
        if (match.value < 0) {
          ++i;
          continue;
        }
        std::size_t begin = i, end = match.end;
        i = end;
        const AddedToken& token = parts_.added[static_cast<std::size_t>(match.value)];
        if (token.special && !parse_special_) continue;
        if (token.single_word &&
            (ends_with(text.substr(0, begin), is_word) || begins_with(text.substr(end), is_word))) {
          continue;
        }
        if (token.lstrip) {
          while (begin > done && ends_with(text.substr(done, begin - done), is_white_space)) {
            do {
              --begin;
            } while (begin > done && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80);
          }
        }
        if (token.rstrip) {
          while (end < text.size() && begins_with(text.substr(end), is_white_space)) {
            next_code_point(text, end);
          }
          i = std::max(i, end);
        }
        if (begin > done) {
          if (Status s = gap(text.substr(done, begin - done)); !s) return s;
        }
        ids_.push_back(token.id);
        done = end;
      }
    }
    return done < text.size() ? gap(text.substr(done)) : Status();
  }

  template <class Is>
  static bool begins_with(std::string_view text, Is is) {
    std::size_t pos = 0;
    return !text.empty() && is(next_code_point(text, pos));
  }
  template <class Is>
  static bool ends_with(std::string_view text, Is is) {
    if (text.empty()) return false;
    std::size_t pos = text.size() - 1;
    while (pos > 0 && (static_cast<unsigned char>(text[pos]) & 0xC0) == 0x80) --pos;
    return is(next_code_point(text, pos));
  }

  Status words(std::string_view text, bool at_start) {
    Words& words = state_.words;
    words.text = text;
    if (Status s = parts_.pre_tokenizer.apply(words, at_start); !s) return s;
    for (const Span& span : words.spans) {
      const std::string_view word = std::string_view(words.text).substr(span.begin, span.end - span.begin);
      if (Status s = parts_.model->encode(word, state_.scratch, ids_); !s) return s;
    }
    return {};
  }

  const TokenizerParts& parts_;
  EncodeState& state_;
  bool parse_special_;
  std::vector<TokenId>& ids_;
};

Error at_file(Error error, const std::string& where) {
  error.message = where + ": " + error.message;
  return error;
}

Result<std::shared_ptr<const Tokenizer>> finished(std::unique_ptr<TokenizerParts> parts) {
  if (Status s = parts->finish(); !s) return at_file(s.error(), parts->name);
  return std::shared_ptr<const Tokenizer>(std::make_shared<Tokenizer>(std::move(parts)));
}

}  // namespace

Status TokenizerParts::add_token(AddedToken token) {
  if (token.content.empty()) return {};  // `tokenizers` ignores it too
  const std::int32_t own = vocab.find(token.content);
  if (own >= 0) {
    token.id = own;
  } else if (const std::int32_t known = extra.find(token.content); known >= 0) {
    token.id = known;
  } else if (!extra.add_indexed(token.content, token.id)) {
    return make_error(ErrorCode::invalid_argument, "added token '" + token.content.substr(0, 100) + "' has the id " +
                                                       std::to_string(token.id) + ", which is out of range");
  }
  const auto [it, fresh] = added_index.try_emplace(token.id, added.size());
  if (!fresh) {
    added[it->second] = std::move(token);
    return {};
  }
  added.push_back(std::move(token));
  return {};
}

Status TokenizerParts::finish() {
  if (extra.size() == 0) extra.index();
  special.assign(static_cast<std::size_t>(size()), 0);
  for (std::size_t i = 0; i < added.size(); ++i) {
    const AddedToken& token = added[i];
    if (token.special) special[static_cast<std::size_t>(token.id)] = 1;
    if (token.normalized) {
      std::string content = token.content;
      if (Status s = normalizer.apply(content); !s) return s;
      normalized_matcher.insert(content, static_cast<std::int32_t>(i));
    } else {
      raw_matcher.insert(token.content, static_cast<std::int32_t>(i));
    }
  }
  const auto named = [&](std::string_view key, std::optional<std::int32_t>& id) {
    for (const auto& [role, text] : special_tokens) {
      if (role != key) continue;
      const std::int32_t found = find(text);
      if (found >= 0) id = found;
    }
  };
  named("bos_token", bos);
  named("eos_token", eos);
  named("pad_token", pad);
  named("unk_token", unk);
  const auto name_role = [&](const char* role, const std::optional<std::int32_t>& id) {
    const bool known =
        std::any_of(special_tokens.begin(), special_tokens.end(), [&](auto& t) { return t.first == role; });
    if (id && !known) special_tokens.emplace_back(role, std::string(piece(*id)));
  };
  name_role("bos_token", bos);
  name_role("eos_token", eos);
  name_role("pad_token", pad);
  name_role("unk_token", unk);
  // The config's wish counts where the vocabulary's file adds nothing of the kind.
  const auto contains = [](const std::vector<std::int32_t>& ids, std::int32_t id) {
    return std::find(ids.begin(), ids.end(), id) != ids.end();
  };
  if (add_bos.value_or(false) && bos && !contains(prefix, *bos)) prefix.insert(prefix.begin(), *bos);
  if (add_eos.value_or(false) && eos && !contains(suffix, *eos)) suffix.push_back(*eos);
  for (const auto* ids : {&prefix, &suffix}) {
    for (const std::int32_t id : *ids) {
      if (id < 0 || id >= size()) {
        return make_error(ErrorCode::invalid_argument,
                          "the post-processor adds token " + std::to_string(id) + ", which does not exist");
      }
    }
  }
  return {};
}

Tokenizer::Tokenizer(std::unique_ptr<TokenizerParts> parts) : parts_(std::move(parts)) {}
Tokenizer::~Tokenizer() = default;

Result<std::shared_ptr<const Tokenizer>> Tokenizer::from_json(std::string_view json, std::string_view name) {
  auto parts = std::make_unique<TokenizerParts>();
  parts->name = name;
  if (Status s = load_tokenizer_json(json, *parts); !s) return at_file(s.error(), parts->name);
  return finished(std::move(parts));
}

Result<std::shared_ptr<const Tokenizer>> Tokenizer::from_gguf(const GgufVocab& vocab) {
  auto parts = std::make_unique<TokenizerParts>();
  parts->name = "GGUF metadata";
  if (Status s = load_gguf(vocab, *parts); !s) return at_file(s.error(), parts->name);
  return finished(std::move(parts));
}

Result<std::shared_ptr<const Tokenizer>> Tokenizer::load(const FileSet& files) {
  auto parts = std::make_unique<TokenizerParts>();
  const auto read = [&](std::string_view name, auto&& use) -> Status {
    auto bytes = files.open(name);
    if (!bytes) return bytes.error();
    if (Status s = use(bytes->text()); !s) return at_file(s.error(), files.describe(name));
    return {};
  };
  std::string config;
  if (files.has("tokenizer_config.json")) {
    Status s = read("tokenizer_config.json", [&](std::string_view text) -> Status {
      config = text;
      return {};
    });
    if (!s) return s.error();
  }

  std::string tiktoken;
  for (const std::string& name : files.list()) {
    if (name.ends_with(".tiktoken") && tiktoken.empty()) tiktoken = name;
  }
  Status vocabulary;
  if (files.has("tokenizer.json")) {
    parts->name = files.describe("tokenizer.json");
    vocabulary = read("tokenizer.json", [&](std::string_view text) { return load_tokenizer_json(text, *parts); });
  } else if (files.has("tokenizer.model")) {
    parts->name = files.describe("tokenizer.model");
    vocabulary = read("tokenizer.model", [&](std::string_view text) {
      return looks_like_tiktoken(text) ? load_tiktoken(text, "tokenizer.model", *parts)
                                       : load_sentencepiece(text, *parts);
    });
  } else if (!tiktoken.empty()) {
    parts->name = files.describe(tiktoken);
    vocabulary = read(tiktoken, [&](std::string_view text) { return load_tiktoken(text, tiktoken, *parts); });
  } else if (files.has("vocab.json") && files.has("merges.txt")) {
    parts->name = files.describe("vocab.json");
    auto merges = files.open("merges.txt");
    if (!merges) return merges.error();
    vocabulary = read("vocab.json", [&](std::string_view text) {
      return load_vocab_and_merges(text, merges->text(), config, *parts);
    });
  } else if (files.has("vocab.txt")) {
    parts->name = files.describe("vocab.txt");
    vocabulary = read("vocab.txt", [&](std::string_view text) { return load_wordpiece_vocab(text, config, *parts); });
  } else {
    return make_error(ErrorCode::not_found,
                      files.describe() +
                          ": no tokenizer: looked for tokenizer.json, tokenizer.model, *.tiktoken, "
                          "vocab.json with merges.txt, vocab.txt");
  }
  if (!vocabulary) return vocabulary.error();

  if (files.has("added_tokens.json")) {
    Status s = read("added_tokens.json", [&](std::string_view text) { return read_added_tokens(text, *parts); });
    if (!s) return s.error();
  }
  if (files.has("special_tokens_map.json")) {
    Status s =
        read("special_tokens_map.json", [&](std::string_view text) { return read_special_tokens_map(text, *parts); });
    if (!s) return s.error();
  }
  if (!config.empty()) {
    if (Status s = read_tokenizer_config(config, *parts); !s) {
      return at_file(s.error(), files.describe("tokenizer_config.json"));
    }
  }
  // A template in a file of its own counts before one in the config.
  const auto set_template = [&](std::string name, std::string source) {
    auto& all = parts->chat_templates;
    std::erase_if(all, [&](const auto& t) { return t.first == name; });
    all.emplace(name == "default" ? all.begin() : all.end(), name, std::move(source));
  };
  if (files.has("chat_template.json")) {
    Status s = read("chat_template.json", [&](std::string_view text) { return read_tokenizer_config(text, *parts); });
    if (!s) return s.error();
  }
  if (files.has("chat_template.jinja")) {
    Status s = read("chat_template.jinja", [&](std::string_view text) -> Status {
      set_template("default", std::string(text));
      return {};
    });
    if (!s) return s.error();
  }
  return finished(std::move(parts));
}

Result<std::vector<TokenId>> Tokenizer::encode(std::string_view text, EncodeOptions options) const {
  // Positions inside a word are 32 bits wide.
  constexpr std::size_t kMaxText = std::size_t{1} << 28;
  if (text.size() > kMaxText) return make_error(ErrorCode::too_large, "a text over 256 MiB cannot be tokenised");
  std::string repaired;
  if (!is_valid_utf8(text)) {
    repaired = replace_invalid_utf8(text);
    text = repaired;
  }
  static thread_local EncodeState state;
  std::vector<TokenId> ids;
  ids.reserve(text.size() / 3 + parts_->prefix.size() + parts_->suffix.size() + 1);
  if (options.add_special) ids = parts_->prefix;
  Status status = Encoder(*parts_, state, options.parse_special, ids).run(text);
  // One huge text must not keep its working memory for ever.
  if (text.size() > (std::size_t{1} << 20)) state = {};
  if (!status) return std::move(status).error();
  if (options.add_special) ids.insert(ids.end(), parts_->suffix.begin(), parts_->suffix.end());
  return ids;
}

std::string Tokenizer::decode(std::span<const TokenId> ids, bool skip_special) const {
  DecoderRun run(parts_->decoder);
  std::string out;
  for (const TokenId id : ids) {
    if (!parts_->has(id) || (skip_special && is_special(id))) continue;
    run.push(parts_->piece(id), out);
  }
  run.flush(out);
  return is_valid_utf8(out) ? out : replace_invalid_utf8(out);
}

std::string_view Tokenizer::token_text(TokenId id) const { return parts_->piece(id); }

std::string Tokenizer::token_bytes(TokenId id) const {
  DecoderRun run(parts_->decoder, true);
  std::string out;
  if (parts_->has(id)) run.push(parts_->piece(id), out);
  run.flush(out);
  return out;
}

std::optional<TokenId> Tokenizer::find_token(std::string_view piece) const {
  const std::int32_t id = parts_->find(piece);
  return id >= 0 ? std::optional<TokenId>(id) : std::nullopt;
}

std::int32_t Tokenizer::vocab_size() const { return parts_->size(); }

bool Tokenizer::is_special(TokenId id) const {
  return id >= 0 && static_cast<std::size_t>(id) < parts_->special.size() &&
         parts_->special[static_cast<std::size_t>(id)] != 0;
}

std::optional<TokenId> Tokenizer::bos_id() const { return parts_->bos; }
std::optional<TokenId> Tokenizer::eos_id() const { return parts_->eos; }
std::optional<TokenId> Tokenizer::pad_id() const { return parts_->pad; }
std::optional<TokenId> Tokenizer::unk_id() const { return parts_->unk; }
bool Tokenizer::adds_bos() const {
  return parts_->bos && !parts_->prefix.empty() && parts_->prefix.front() == *parts_->bos;
}
const std::vector<std::pair<std::string, std::string>>& Tokenizer::special_tokens() const {
  return parts_->special_tokens;
}
const std::vector<std::pair<std::string, std::string>>& Tokenizer::chat_templates() const {
  return parts_->chat_templates;
}
const std::string* Tokenizer::chat_template(std::string_view name) const {
  for (const auto& [key, source] : parts_->chat_templates) {
    if (key == name) return &source;
  }
  return nullptr;
}

}  // namespace xgen::text
