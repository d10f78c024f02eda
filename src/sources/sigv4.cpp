#include "sources/sigv4.h"

#include <algorithm>
#include <cctype>

#include "sources/digest.h"

namespace xgen::sources {
namespace {

std::string lower(std::string_view text) {
  std::string out(text);
  std::transform(out.begin(), out.end(), out.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return out;
}

// Without blanks around, and one where there are several.
std::string trimmed(std::string_view text) {
  std::string out;
  for (const char c : text) {
    const bool blank = c == ' ' || c == '\t';
    if (!blank)
      out += c;
    else if (!out.empty() && out.back() != ' ')
      out += ' ';
  }
  while (out.ends_with(' ')) out.pop_back();
  return out;
}

}  // namespace

std::string percent_encoded(std::string_view text, bool keep_slashes) {
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  std::string out;
  for (const unsigned char c : text) {
    if ((c < 0x80 && std::isalnum(c) != 0) || c == '-' || c == '_' || c == '.' || c == '~' ||
        (c == '/' && keep_slashes)) {
      out += static_cast<char>(c);
    } else {
      out += '%';
      out += kDigits[c >> 4];
      out += kDigits[c & 15];
    }
  }
  return out;
}

std::string canonical_query(std::vector<std::pair<std::string, std::string>> query) {
  for (auto& [name, value] : query) {
    name = percent_encoded(name, false);
    value = percent_encoded(value, false);
  }
  std::sort(query.begin(), query.end());
  std::string out;
  for (const auto& [name, value] : query) out.append(out.empty() ? "" : "&").append(name).append("=").append(value);
  return out;
}

std::vector<std::pair<std::string, std::string>> sign_v4(const SignedRequest& request, const AwsKeys& keys,
                                                         std::string_view region, std::string_view service,
                                                         std::time_t now) {
  std::tm utc{};
  gmtime_r(&now, &utc);
  char stamp[32];
  std::strftime(stamp, sizeof stamp, "%Y%m%dT%H%M%SZ", &utc);
  const std::string date(stamp, 8);
  const std::string no_body = to_hex(digest_of(DigestKind::sha256, ""));

  std::vector<std::pair<std::string, std::string>> added = {{"x-amz-date", stamp}, {"x-amz-content-sha256", no_body}};
  if (!keys.session_token.empty()) added.emplace_back("x-amz-security-token", keys.session_token);

  std::vector<std::pair<std::string, std::string>> headers = {{"host", request.host}};
  const auto sign = [&headers](const auto& list) {
    for (const auto& [name, value] : list) headers.emplace_back(lower(name), trimmed(value));
  };
  sign(request.headers);
  sign(added);
  std::sort(headers.begin(), headers.end());
  std::string names;
  std::string canonical = request.method + "\n" + request.path + "\n" + canonical_query(request.query) + "\n";
  for (const auto& [name, value] : headers) {
    canonical.append(name).append(":").append(value).append("\n");
    names += (names.empty() ? "" : ";") + name;
  }
  canonical += "\n" + names + "\n" + no_body;

  const std::string scope = date + "/" + std::string(region) + "/" + std::string(service) + "/aws4_request";
  const std::string to_sign = "AWS4-HMAC-SHA256\n" + std::string(stamp) + "\n" + scope + "\n" +
                              to_hex(digest_of(DigestKind::sha256, canonical));
  std::string key = hmac_sha256("AWS4" + keys.secret, date);
  for (const std::string_view part : {region, service, std::string_view("aws4_request")}) key = hmac_sha256(key, part);
  added.emplace_back("Authorization", "AWS4-HMAC-SHA256 Credential=" + keys.id + "/" + scope + ", SignedHeaders=" +
                                          names + ", Signature=" + to_hex(hmac_sha256(key, to_sign)));
  return added;
}

}  // namespace xgen::sources
