#include "base/ip_range.h"

#include <arpa/inet.h>

#include <algorithm>
#include <charconv>
#include <cstring>

namespace xgen {
namespace {

constexpr std::array<std::uint8_t, 12> kV4Prefix{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff};

}  // namespace

std::optional<IpAddress> IpAddress::parse(std::string_view text) {
  if (text.size() > 2 && text.front() == '[' && text.back() == ']') text = text.substr(1, text.size() - 2);
  if (text.size() >= INET6_ADDRSTRLEN || text.find('\0') != std::string_view::npos) return {};
  const std::string copy(text);
  IpAddress address;
  if (inet_pton(AF_INET6, copy.c_str(), address.bytes_.data()) == 1) return address;
  std::copy(kV4Prefix.begin(), kV4Prefix.end(), address.bytes_.begin());
  if (inet_pton(AF_INET, copy.c_str(), address.bytes_.data() + kV4Prefix.size()) == 1) return address;
  return {};
}

std::optional<IpAddress> IpAddress::parse_endpoint(std::string_view text) {
  const std::size_t colon = text.rfind(':');
  if (colon == std::string_view::npos) return parse(text);
  const bool v4 = text.find(':') == colon;
  if (!v4 && !(colon > 0 && text[colon - 1] == ']')) return parse(text);
  std::uint16_t port = 0;
  const char* const last = text.data() + text.size();
  const auto [end, error] = std::from_chars(text.data() + colon + 1, last, port);
  if (error != std::errc{} || end != last) return {};
  return parse(text.substr(0, colon));
}

bool IpAddress::is_v4() const { return std::equal(kV4Prefix.begin(), kV4Prefix.end(), bytes_.begin()); }

bool IpAddress::is_loopback() const {
  if (is_v4()) return bytes_[12] == 127;
  return std::all_of(bytes_.begin(), bytes_.end() - 1, [](std::uint8_t byte) { return byte == 0; }) && bytes_[15] == 1;
}

std::string IpAddress::text() const {
  char out[INET6_ADDRSTRLEN] = {};
  inet_ntop(is_v4() ? AF_INET : AF_INET6, bytes_.data() + (is_v4() ? kV4Prefix.size() : 0), out, sizeof(out));
  return out;
}

std::optional<IpRange> IpRange::parse(std::string_view text) {
  const std::size_t slash = text.find('/');
  const auto address = IpAddress::parse(text.substr(0, slash));
  if (!address) return {};
  IpRange range;
  range.first_ = *address;
  if (slash == std::string_view::npos) return range;
  int bits = 0;
  const char* const last = text.data() + text.size();
  const auto [end, error] = std::from_chars(text.data() + slash + 1, last, bits);
  const bool v4 = text.substr(0, slash).find(':') == std::string_view::npos;
  if (error != std::errc{} || end != last || bits < 0 || bits > (v4 ? 32 : 128)) return {};
  range.bits_ = v4 ? 96 + bits : bits;
  return range;
}

std::string IpRange::text() const {
  // One of all IPv4 addresses and more has no short form of IPv4.
  if (first_.is_v4() && bits_ >= 96) return first_.text() + "/" + std::to_string(bits_ - 96);
  return (first_.is_v4() ? "::ffff:" : "") + first_.text() + "/" + std::to_string(bits_);
}

bool IpRange::contains(const IpAddress& address) const {
  const auto whole = static_cast<std::size_t>(bits_ / 8);
  if (!std::equal(address.bytes_.begin(), address.bytes_.begin() + static_cast<std::ptrdiff_t>(whole),
                  first_.bytes_.begin()))
    return false;
  if (bits_ % 8 == 0) return true;
  const unsigned mask = 0xffU << (8 - bits_ % 8);
  return ((address.bytes_[whole] ^ first_.bytes_[whole]) & mask) == 0;
}

}  // namespace xgen
