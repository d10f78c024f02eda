// The files beside a vocabulary: tokenizer_config.json, special_tokens_map.json, added_tokens.json; and vocab.txt.
#include "base/json.h"
#include "text/json_fields.h"
#include "text/tokenizer_parts.h"

namespace xgen::text {
namespace {

namespace json = boost::json;

Result<json::value> parse_object(std::string_view text) {
  auto document = parse_json(text);
  if (!document) return document.error();
  if (!document->is_object()) return make_error(ErrorCode::invalid_argument, "is not a JSON object");
  return document;
}

std::string_view view(const json::string& s) { return {s.data(), s.size()}; }

// A token by its text, or an object with "content".
bool token_text(const json::value& value, std::string& out) {
  const json::value* v = &value;
  if (const json::object* object = value.if_object()) {
    v = object->if_contains("content");
    if (v == nullptr) return false;
  }
  if (!v->is_string()) return false;
  out = view(v->get_string());
  return true;
}

// A token that plays a role is special even where the vocabulary's file does not say so. Tokens that the vocabulary
// lacks are left out: the model has no embedding for them.
Status add_special(const std::string& content, TokenizerParts& parts) {
  const std::int32_t id = parts.find(content);
  if (id < 0 || parts.added_index.contains(id)) return {};
  AddedToken token;
  token.content = content;
  token.id = id;
  token.normalized = false;
  token.special = true;
  return parts.add_token(std::move(token));
}

Status read_roles(const json::object& object, TokenizerParts& parts) {
  for (const auto& item : object) {
    const std::string_view key(item.key().data(), item.key().size());
    std::string content;
    if (key.ends_with("_token") && token_text(item.value(), content)) {
      std::erase_if(parts.special_tokens, [&](const auto& t) { return t.first == key; });
      parts.special_tokens.emplace_back(key, content);
      if (Status s = add_special(content, parts); !s) return s;
    } else if (key == "additional_special_tokens" && item.value().is_array()) {
      for (const json::value& token : item.value().get_array()) {
        if (!token_text(token, content)) continue;
        if (Status s = add_special(content, parts); !s) return s;
      }
    }
  }
  return {};
}

}  // namespace

Status read_special_tokens_map(std::string_view text, TokenizerParts& parts) {
  auto document = parse_object(text);
  if (!document) return document.error();
  return read_roles(document->get_object(), parts);
}

Status read_added_tokens(std::string_view text, TokenizerParts& parts) {
  auto document = parse_object(text);
  if (!document) return document.error();
  for (const auto& item : document->get_object()) {
    const std::string content(item.key().data(), item.key().size());
    const json::value& id = item.value();
    if (!id.is_int64() || id.get_int64() < 0 || id.get_int64() > Vocab::kMaxId) {
      return make_error(ErrorCode::invalid_argument, "'" + content.substr(0, 100) + "' must have an id");
    }
    if (parts.find(content) >= 0 || parts.has(id.get_int64())) continue;
    AddedToken token;
    token.content = content;
    token.id = static_cast<std::int32_t>(id.get_int64());
    token.normalized = false;
    if (Status s = parts.add_token(std::move(token)); !s) return s;
  }
  return {};
}

Status read_tokenizer_config(std::string_view text, TokenizerParts& parts) {
  auto document = parse_object(text);
  if (!document) return document.error();
  const Fields f(document->get_object(), "");

  if (f.has("added_tokens_decoder")) {
    Fields tokens;
    if (Status s = f.object("added_tokens_decoder", tokens); !s) return s;
    for (const auto& item : tokens.raw()) {
      const std::string key(item.key().data(), item.key().size());
      Fields one;
      AddedToken token;
      if (Status s = tokens.object(key, one); !s) return s;
      if (Status s = read_added_token(one, token); !s) return s;
      const bool number = !key.empty() && key.size() <= 7 && key.find_first_not_of("0123456789") == std::string::npos;
      const std::int64_t id = number ? std::stoll(key) : -1;
      if (id < 0 || id > Vocab::kMaxId) return tokens.error("'" + key.substr(0, 100) + "' is not a token id");
      // What the vocabulary's own file says about a token counts before this.
      const std::int32_t known = parts.find(token.content);
      if (known >= 0 ? parts.added_index.contains(known) : parts.has(id)) continue;
      token.id = static_cast<std::int32_t>(id);
      if (Status s = parts.add_token(std::move(token)); !s) return s;
    }
  }
  if (Status s = read_roles(f.raw(), parts); !s) return s;

  std::string cls;
  if (Status s = f.optional_string("tokenizer_class", cls); !s) return s;
  bool flag = false;
  if (f.has("add_bos_token")) {
    if (Status s = f.boolean("add_bos_token", flag); !s) return s;
    parts.add_bos = flag;
  }
  if (f.has("add_eos_token")) {
    if (Status s = f.boolean("add_eos_token", flag); !s) return s;
    parts.add_eos = flag;
  } else if (cls.starts_with("T5Tokenizer")) {
    parts.add_eos = true;
  }

  const json::value* chat = f.find("chat_template");
  if (chat == nullptr) return {};
  const auto set = [&](std::string name, std::string_view source) {
    auto& all = parts.chat_templates;
    std::erase_if(all, [&](const auto& t) { return t.first == name; });
    all.emplace(name == "default" ? all.begin() : all.end(), std::move(name), std::string(source));
  };
  if (chat->is_string()) {
    set("default", view(chat->get_string()));
    return {};
  }
  std::vector<Fields> named;
  if (Status s = f.objects("chat_template", named); !s) return s;
  for (const Fields& one : named) {
    std::string name, source;
    if (Status s = one.string("name", name); !s) return s;
    if (Status s = one.string("template", source); !s) return s;
    set(name, source);
  }
  return {};
}

Status load_wordpiece_vocab(std::string_view text, std::string_view config, TokenizerParts& parts) {
  NormalizerStep bert;
  bert.kind = NormalizerStep::Kind::bert;
  if (!config.empty()) {
    auto document = parse_object(config);
    if (!document) return make_error(ErrorCode::invalid_argument, "tokenizer_config.json: " + document.error().message);
    const Fields f(document->get_object(), "tokenizer_config.json");
    if (Status s = f.boolean("do_lower_case", bert.lowercase); !s) return s;
    bert.strip_accents = bert.lowercase;
    if (Status s = f.boolean("strip_accents", bert.strip_accents); !s) return s;
    if (Status s = f.boolean("tokenize_chinese_chars", bert.handle_chinese_chars); !s) return s;
  }
  parts.vocab.reserve(text.size() / 8, text.size());
  for (std::int64_t id = 0; !text.empty(); ++id) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (!parts.vocab.add(line, id)) return make_error(ErrorCode::invalid_argument, "holds too many pieces");
  }
  parts.vocab.index();
  const auto role = [&](const char* name, const std::string& piece) {
    const std::int32_t id = parts.vocab.find(piece);
    if (id >= 0) parts.special_tokens.emplace_back(name, piece);
    return id;
  };
  WordPieceModel::Options options;
  options.unknown = role("unk_token", "[UNK]");
  if (options.unknown < 0) return make_error(ErrorCode::invalid_argument, "holds no [UNK]");
  const std::int32_t cls = role("cls_token", "[CLS]"), sep = role("sep_token", "[SEP]");
  role("pad_token", "[PAD]");
  role("mask_token", "[MASK]");
  if (cls >= 0) parts.prefix.push_back(cls);
  if (sep >= 0) parts.suffix.push_back(sep);
  const auto roles = parts.special_tokens;
  for (const auto& [name, piece] : roles) {
    if (Status s = add_special(piece, parts); !s) return s;
  }
  parts.normalizer.steps.push_back(std::move(bert));
  parts.pre_tokenizer.steps.emplace_back();
  parts.pre_tokenizer.steps.back().kind = PreTokenizerStep::Kind::bert;
  parts.decoder.push_back(decoder_stage(DecoderStage::Kind::word_piece, "##"));
  parts.decoder.back().cleanup = true;
  parts.model = std::make_unique<WordPieceModel>(parts.vocab, std::move(options));
  return {};
}

}  // namespace xgen::text
