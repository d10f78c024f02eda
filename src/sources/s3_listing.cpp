#include "sources/s3_listing.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <optional>
#include <utility>

namespace xgen::sources {
namespace {

constexpr std::size_t kMaxTokenBytes = 4096;

std::optional<std::uint64_t> number(std::string_view text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc{} || end != text.data() + text.size()) return {};
  return value;
}

void append_utf8(std::string& out, std::uint32_t code) {
  if (code < 0x80) {
    out += static_cast<char>(code);
  } else if (code < 0x800) {
    out += static_cast<char>(0xc0 | (code >> 6));
    out += static_cast<char>(0x80 | (code & 0x3f));
  } else if (code < 0x10000) {
    out += static_cast<char>(0xe0 | (code >> 12));
    out += static_cast<char>(0x80 | ((code >> 6) & 0x3f));
    out += static_cast<char>(0x80 | (code & 0x3f));
  } else {
    out += static_cast<char>(0xf0 | (code >> 18));
    out += static_cast<char>(0x80 | ((code >> 12) & 0x3f));
    out += static_cast<char>(0x80 | ((code >> 6) & 0x3f));
    out += static_cast<char>(0x80 | (code & 0x3f));
  }
}

// Character data of XML. Nothing if an entity is unknown.
std::optional<std::string> xml_text(std::string_view text) {
  constexpr std::array<std::pair<std::string_view, char>, 5> kNames = {
      {{"amp", '&'}, {"lt", '<'}, {"gt", '>'}, {"quot", '"'}, {"apos", '\''}}};
  std::string out;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '&') {
      out += text[i];
      continue;
    }
    const std::size_t end = text.find(';', i);
    if (end == std::string_view::npos) return {};
    const std::string_view name = text.substr(i + 1, end - i - 1);
    i = end;
    if (name.starts_with('#')) {
      const bool hex = name.size() > 1 && (name[1] == 'x' || name[1] == 'X');
      const std::string_view digits = name.substr(hex ? 2 : 1);
      std::uint32_t code = 0;
      const auto [stop, error] = std::from_chars(digits.data(), digits.data() + digits.size(), code, hex ? 16 : 10);
      if (digits.empty() || error != std::errc{} || stop != digits.data() + digits.size() || code > 0x10ffff ||
          (code >= 0xd800 && code < 0xe000))
        return {};
      append_utf8(out, code);
      continue;
    }
    const auto* known =
        std::find_if(kNames.begin(), kNames.end(), [&](const auto& each) { return each.first == name; });
    if (known == kNames.end()) return {};
    out += known->second;
  }
  return out;
}

// The inside of the first <name>…</name> from `at` on, which is moved behind it. S3's answers have no attributes but a
// name space on the root, no comments, and no element inside one of the same name.
std::optional<std::string_view> element(std::string_view xml, std::string_view name, std::size_t& at) {
  const std::string open = "<" + std::string(name) + ">";
  const std::string close = "</" + std::string(name) + ">";
  const std::size_t begin = xml.find(open, at);
  if (begin == std::string_view::npos) return {};
  const std::size_t inside = begin + open.size();
  const std::size_t end = xml.find(close, inside);
  if (end == std::string_view::npos) return {};
  at = end + close.size();
  return xml.substr(inside, end - inside);
}

}  // namespace

std::string xml_field(std::string_view xml, std::string_view name) {
  std::size_t at = 0;
  const auto inside = element(xml, name, at);
  return inside ? xml_text(*inside).value_or("") : "";
}

std::string without_quotes(std::string etag) {
  if (etag.size() >= 2 && etag.front() == '"' && etag.back() == '"') etag = etag.substr(1, etag.size() - 2);
  return etag;
}

Result<S3Page> parse_s3_page(std::string_view xml) {
  const auto bad = [](const std::string& what) { return make_error(ErrorCode::invalid_argument, what); };
  if (xml.find("<ListBucketResult") == std::string_view::npos) return bad("it is no ListBucketResult");
  S3Page page;
  std::size_t at = 0;
  while (const auto contents = element(xml, "Contents", at)) {
    S3Page::Object object;
    std::size_t inside = 0;
    const auto key = element(*contents, "Key", inside);
    const auto text = key ? xml_text(*key) : std::nullopt;
    const auto size = number(xml_field(*contents, "Size"));
    if (!text || text->empty() || !size) return bad("an object without a proper Key and Size");
    object.key = *text;
    object.size = *size;
    object.etag = without_quotes(xml_field(*contents, "ETag"));
    page.objects.push_back(std::move(object));
  }
  if (xml_field(xml, "IsTruncated") == "true") {
    page.next = xml_field(xml, "NextContinuationToken");
    if (page.next.empty() || page.next.size() > kMaxTokenBytes)
      return bad("IsTruncated without a NextContinuationToken");
  }
  return page;
}

}  // namespace xgen::sources
