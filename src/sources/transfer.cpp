#include "sources/transfer.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <condition_variable>
#include <ctime>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "base/units.h"
#include "sources/digest.h"
#include "sources/part_file.h"

namespace xgen::sources {
namespace {

constexpr std::size_t kVerifyBlock = std::size_t{1} << 20;
constexpr std::chrono::milliseconds kProgressPeriod{100};

std::optional<std::uint64_t> number(std::string_view text) {
  std::uint64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (text.empty() || error != std::errc{} || end != text.data() + text.size()) return {};
  return value;
}

struct ContentRange {
  std::uint64_t first = 0;
  std::optional<std::uint64_t> total;
};
// "bytes 0-99/1234"
std::optional<ContentRange> content_range(std::string_view text) {
  if (!text.starts_with("bytes ")) return {};
  text.remove_prefix(6);
  const std::size_t dash = text.find('-');
  const std::size_t slash = text.find('/');
  if (dash == std::string_view::npos || slash == std::string_view::npos || dash > slash) return {};
  const auto first = number(text.substr(0, dash));
  if (!first) return {};
  return ContentRange{*first, number(text.substr(slash + 1))};
}

// How one request ended.
enum class Outcome : std::uint8_t {
  done,       // of this range
  again,      // it may work in a moment
  no_ranges,  // the server sends the whole file only
  fatal,
};
struct Attempt {
  Outcome outcome = Outcome::done;
  Error error;
  std::optional<std::chrono::seconds> retry_after;
};

// One file, several threads. What more than one of them touches is guarded by `mutex_`.
class Transfer {
 public:
  Transfer(http::Client& client, const Remote& remote, const RemoteFile& file, const TransferOptions& options,
           PartFile& part, bool ranges)
      : client_(client), remote_(remote), file_(file), options_(options), part_(part), ranges_(ranges) {
    for (std::size_t i = 0; i < part_.chunks(); ++i)
      if (part_.done(i) < part_.length(i)) todo_.push_back(i);
  }

  // Until every byte is there and checked. `no_ranges` is set if it must be done again as one stream.
  Status run(const std::function<void(std::uint64_t)>& progress, const std::stop_token& stop, bool& no_ranges);

 private:
  void work(const std::stop_token& stop);
  std::optional<std::size_t> take();
  Attempt get(std::size_t chunk, const std::stop_token& stop);
  Attempt fail(Outcome outcome, std::string what) const {
    return {outcome, make_error(ErrorCode::unavailable, remote_.name + ": " + std::move(what)), {}};
  }
  void give_up(Error error, bool no_ranges = false);
  Status verify(const std::function<void(std::uint64_t)>& progress, const std::stop_token& stop);
  Result<http::ClientRequest> address();

  http::Client& client_;
  const Remote& remote_;
  const RemoteFile& file_;
  const TransferOptions& options_;
  PartFile& part_;
  const bool ranges_;

  std::mutex mutex_;
  std::condition_variable_any moved_;  // bytes have come, or it is over
  std::deque<std::size_t> todo_;
  std::optional<Error> error_;
  bool no_ranges_ = false;
  std::chrono::steady_clock::time_point not_before_;  // what a server asked for with Retry-After
  std::optional<http::ClientRequest> location_;       // where the last redirect led
  std::stop_source over_;
};

void Transfer::give_up(Error error, bool no_ranges) {
  {
    std::lock_guard lock(mutex_);
    if (!error_) {
      error_ = std::move(error);
      no_ranges_ = no_ranges;
    }
  }
  over_.request_stop();
  moved_.notify_all();
}

std::optional<std::size_t> Transfer::take() {
  std::lock_guard lock(mutex_);
  if (error_ || todo_.empty()) return {};
  const std::size_t chunk = todo_.front();
  todo_.pop_front();
  return chunk;
}

// Ranges go where the first redirect led: the address that it gave is good for a while.
Result<http::ClientRequest> Transfer::address() {
  {
    std::lock_guard lock(mutex_);
    if (location_) return *location_;
  }
  return remote_.request();
}

Attempt Transfer::get(std::size_t chunk, const std::stop_token& stop) {
  auto request = address();
  if (!request) return {Outcome::fatal, request.error(), {}};
  const bool whole = !ranges_;
  const std::uint64_t already = part_.done(chunk);
  const std::uint64_t first = whole ? 0 : part_.begin(chunk) + already;
  const std::uint64_t expected = whole ? file_.size : part_.length(chunk) - already;
  const bool asks_range = !whole && !(first == 0 && expected == file_.size);
  std::uint64_t came = 0;
  for (int redirects = 0;; ++redirects) {
    http::ClientRequest each = *request;
    each.headers.emplace_back("Accept-Encoding", "identity");
    if (asks_range)
      each.headers.emplace_back("Range", "bytes=" + std::to_string(first) + "-" + std::to_string(first + expected - 1));
    each.first_byte_timeout = each.idle_timeout = options_.patience.idle_timeout;
    Answer answer;
    std::optional<Attempt> refused;  // by what its head or its length says
    const Status ended = fetch_with_stop(
        client_, std::move(each),
        [&](const http::ResponseHead& head) -> Status {
          answer.status = head.status;
          answer.headers = head.headers;
          if (remote_.look) {
            if (Status fine = remote_.look(head); !fine) {
              refused = Attempt{Outcome::fatal, fine.error(), {}};
              return fine;
            }
          }
          if (head.status == 206 && asks_range) {
            const auto range = content_range(head.header("content-range"));
            if (!range || range->first != first) {
              refused = fail(Outcome::fatal, "the server sent another range than it was asked for ('" +
                                                 std::string(head.header("content-range")) + "')");
            } else if (range->total && *range->total != file_.size) {
              refused = fail(Outcome::fatal, "the server says that it has " + std::to_string(*range->total) +
                                                 " bytes, but the listing says " + std::to_string(file_.size));
            }
          } else if (head.status == 200 && asks_range) {
            refused = fail(Outcome::no_ranges, "the server does not send ranges");
          } else if (head.status == 200) {
            const auto length = number(head.header("content-length"));
            if (length && *length != file_.size)
              refused = fail(Outcome::fatal, "the server sends " + std::to_string(*length) +
                                                 " bytes, but the listing says " + std::to_string(file_.size));
          }
          return refused ? Status(refused->error) : Status();
        },
        [&](std::string_view data) -> Status {
          if (answer.status != 206 && answer.status != 200) {
            answer.body += data.substr(0, kMaxErrorBody - std::min(kMaxErrorBody, answer.body.size()));
            return {};
          }
          came += data.size();
          if (came > expected) {
            refused = fail(Outcome::fatal, "the server sends more than the " + std::to_string(expected) +
                                               " bytes that it was asked for");
            return refused->error;
          }
          // A stream that begins anew brings what is there already.
          const std::uint64_t have = whole ? part_.done(chunk) : 0;
          const std::uint64_t begin = came - data.size();
          if (whole && begin < have) data.remove_prefix(std::min<std::uint64_t>(have - begin, data.size()));
          if (data.empty()) return {};
          if (Status written = part_.write(chunk, data); !written) {
            refused = Attempt{Outcome::fatal, written.error(), {}};
            return written;
          }
          { std::lock_guard lock(mutex_); }  // whoever looks is waiting by now, or will see it
          moved_.notify_all();
          return {};
        },
        stop);
    if (refused) return *refused;
    if (stop.stop_requested()) return {Outcome::fatal, stopped_error(), {}};
    const bool redirects_on = answer.status >= 301 && answer.status <= 308 && answer.status != 304;
    if (redirects_on) {
      if (redirects >= kMaxRedirects) return fail(Outcome::fatal, "too many redirects");
      auto next = redirected(*request, http::find_header(answer.headers, "location"));
      if (!next) return fail(Outcome::fatal, next.error().message);
      request = std::move(next);
      std::lock_guard lock(mutex_);
      location_ = *request;
      continue;
    }
    if (answer.status != 0 && answer.status != 200 && answer.status != 206) {
      bool was_redirected = false;
      {
        std::lock_guard lock(mutex_);
        was_redirected = location_.has_value();
        location_.reset();
      }
      Attempt attempt{Outcome::fatal, remote_.explain(answer), retry_after(answer.headers, std::time(nullptr))};
      // An address that has run out says 401, 403 or 404; the next try asks for a new one.
      const bool ran_out =
          was_redirected && redirects == 0 &&
          (answer.status == 401 || answer.status == 403 || answer.status == 404 || answer.status == 410);
      if (worth_retrying(answer.status) || ran_out) attempt.outcome = Outcome::again;
      if (attempt.retry_after && *attempt.retry_after > kLongestRetryAfter) attempt.outcome = Outcome::fatal;
      return attempt;
    }
    if (!ended) {
      const ErrorCode code = ended.error().code;
      const bool may_pass =
          code == ErrorCode::unavailable || code == ErrorCode::timeout || code == ErrorCode::overloaded;
      return {may_pass ? Outcome::again : Outcome::fatal,
              make_error(code == ErrorCode::timeout ? ErrorCode::unavailable : code,
                         remote_.name + ": " + ended.error().message),
              {}};
    }
    if (part_.done(chunk) < part_.length(chunk)) {
      return fail(Outcome::again,
                  "the server sent " + std::to_string(came) + " bytes instead of " + std::to_string(expected));
    }
    return {};
  }
}

void Transfer::work(const std::stop_token& stop) {
  while (const auto chunk = take()) {
    for (int failures = 0;;) {
      const std::uint64_t before = part_.done(*chunk);
      std::chrono::steady_clock::time_point not_before;
      {
        std::lock_guard lock(mutex_);
        not_before = not_before_;
      }
      const auto now = std::chrono::steady_clock::now();
      if (not_before > now && !wait_for(std::chrono::duration_cast<std::chrono::milliseconds>(not_before - now), stop))
        return;
      const Attempt attempt = get(*chunk, stop);
      if (attempt.outcome == Outcome::done) break;
      if (stop.stop_requested()) return;
      if (attempt.outcome != Outcome::again) return give_up(attempt.error, attempt.outcome == Outcome::no_ranges);
      const std::uint64_t came = part_.done(*chunk) - before;
      failures = came >= kGoodProgress ? 0 : failures + 1;
      if (failures > options_.patience.retries) return give_up(attempt.error);
      const auto pause = attempt.retry_after ? std::chrono::milliseconds(*attempt.retry_after)
                                             : pause_after(failures, options_.patience);
      if (failures > 0) log_retry(attempt.error.message, pause, failures, options_.patience);
      if (attempt.retry_after) {
        std::lock_guard lock(mutex_);
        not_before_ = std::max(not_before_, std::chrono::steady_clock::now() + *attempt.retry_after);
      } else if (failures > 0 && !wait_for(pause, stop)) {
        return;
      }
    }
  }
}

// Follows what has come from the beginning without a gap.
Status Transfer::verify(const std::function<void(std::uint64_t)>& progress, const std::stop_token& stop) {
  Verifier verifier(file_.expectations, file_.size);
  std::string block(
      static_cast<std::size_t>(std::min<std::uint64_t>(kVerifyBlock, std::max<std::uint64_t>(file_.size, 1))), '\0');
  std::uint64_t checked = 0;
  std::uint64_t shown = UINT64_MAX;
  std::chrono::steady_clock::time_point shown_at;
  while (checked < file_.size) {
    const std::uint64_t ready = part_.prefix();
    const auto now = std::chrono::steady_clock::now();
    if (progress && now - shown_at >= kProgressPeriod) {
      const std::uint64_t total = part_.total_done();
      if (total != shown) progress(total);
      shown = total;
      shown_at = now;
    }
    if (checked == ready) {
      std::unique_lock lock(mutex_);
      moved_.wait_for(lock, stop, kProgressPeriod, [&] { return error_ || part_.prefix() > checked; });
      if (stop.stop_requested()) return stopped_error();
      if (error_) return *error_;
      continue;
    }
    const std::size_t size = static_cast<std::size_t>(std::min<std::uint64_t>(block.size(), ready - checked));
    if (Status read = part_.read(checked, block.data(), size); !read) return read;
    verifier.update(std::string_view(block).substr(0, size));
    checked += size;
    if (stop.stop_requested()) return stopped_error();
  }
  if (progress) progress(file_.size);
  if (Status fine = verifier.finish(); !fine) {
    Error error = std::move(fine).error();
    error.message = remote_.name + ": " + error.message;
    return error;
  }
  return {};
}

Status Transfer::run(const std::function<void(std::uint64_t)>& progress, const std::stop_token& stop, bool& no_ranges) {
  const std::stop_callback stopped(stop, [this] { over_.request_stop(); });
  const std::size_t workers =
      std::min<std::size_t>(todo_.size(), static_cast<std::size_t>(std::max(options_.connections, 1)));
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < workers; ++i) {
    threads.emplace_back([this] {
      try {
        work(over_.get_token());
      } catch (const std::exception& error) {
        give_up(make_error(ErrorCode::internal, remote_.name + ": " + error.what()));
      }
    });
  }
  Status outcome = verify(progress, stop);
  over_.request_stop();
  for (std::thread& each : threads) each.join();
  if (stop.stop_requested()) return stopped_error();
  no_ranges = no_ranges_;
  return outcome;
}

}  // namespace

Status transfer(http::Client& client, const Remote& remote, const RemoteFile& file, const std::string& part_path,
                const std::string& destination, const TransferOptions& options,
                const std::function<void(std::uint64_t)>& progress, const std::stop_token& stop) {
  bool ranges = true;
  for (bool second = false;; second = true) {
    auto part = PartFile::open(part_path, file.size, ranges ? options.chunk : std::max<std::uint64_t>(file.size, 1));
    if (!part) return std::move(part).error();
    const bool resumed = (*part)->total_done() > 0;
    bool no_ranges = false;
    Transfer work(client, remote, file, options, **part, ranges);
    Status outcome = work.run(progress, stop, no_ranges);
    if (outcome) return (*part)->publish(destination);
    if (outcome.error().code == ErrorCode::cancelled) return outcome;
    if (no_ranges && ranges) {
      ranges = false;
      continue;
    }
    const bool whole = (*part)->total_done() == file.size;
    if (!whole) return outcome;
    // Wrong bytes help nobody; those of an earlier run may be what is wrong.
    if (Status cleared = (*part)->reset(); !cleared) return cleared;
    if (!resumed || second) {
      ::unlink(part_path.c_str());
      return outcome;
    }
  }
}

}  // namespace xgen::sources
