// Result<T>: a value or an Error; how every room reports what went wrong.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

namespace xgen {

// What kind of fault it is. api/ maps each code to one HTTP status and one OpenAI error type.
enum class ErrorCode : std::uint8_t {
  invalid_argument,   // the caller's fault: 400
  unsupported,        // understood, but not offered: 400
  unauthenticated,    // 401
  permission_denied,  // 403
  not_found,          // 404
  timeout,            // the request's deadline passed: 408
  too_large,          // 413
  overloaded,         // a queue or rate limit is full: 429
  cancelled,          // the client went away: 499 in the log
  internal,           // our own fault: 500
  unavailable,        // loading, draining, out of memory budget: 503
};

struct Error {
  ErrorCode code = ErrorCode::internal;
  std::string message;    // a sentence for the user; names the field or file
  std::string param;      // the request field or config key at fault, empty if none
  int retry_after_s = 0;  // seconds; 0 = no hint (overloaded and unavailable set it)
  std::string received;   // ends the message with what the caller sent: for it alone, never logged
};

inline Error make_error(ErrorCode code, std::string message, std::string param = {}) {
  return Error{code, std::move(message), std::move(param), 0, {}};
}

// One more of several faults: each has a line of the message, and the first gives the code.
inline void add_fault(std::optional<Error>& faults, const Error& error) {
  if (faults)
    faults->message += "\n" + error.message;
  else
    faults = error;
}

template <class T>
class [[nodiscard]] Result {
 public:
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}      // NOLINT: implicit on purpose
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}  // NOLINT

  bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }

  // Precondition: ok().
  T& value() & { return *std::get_if<0>(&state_); }
  const T& value() const& { return *std::get_if<0>(&state_); }
  T&& value() && { return std::move(*std::get_if<0>(&state_)); }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T&& operator*() && { return std::move(*this).value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }

  // Precondition: !ok().
  const Error& error() const& { return *std::get_if<1>(&state_); }
  Error&& error() && { return std::move(*std::get_if<1>(&state_)); }

 private:
  std::variant<T, Error> state_;
};

// A Result without a value.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(Error error) : error_(std::move(error)) {}  // NOLINT: implicit on purpose
  bool ok() const { return !error_.has_value(); }
  explicit operator bool() const { return ok(); }
  const Error& error() const& { return *error_; }
  Error&& error() && { return std::move(*error_); }

 private:
  std::optional<Error> error_;
};

}  // namespace xgen
