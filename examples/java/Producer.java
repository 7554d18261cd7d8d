// Writes events for one user, each PAYLOAD a JSON text. "mvn dependency:copy-dependencies -DoutputDirectory=libs", then
// java -cp 'libs/*' Producer.java 127.0.0.1:8004 notifier.events.v1 101 greeting PAYLOAD...
import static java.nio.charset.StandardCharsets.UTF_8;
import static org.apache.kafka.clients.producer.ProducerConfig.*;

import java.util.Arrays;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.atomic.AtomicInteger;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.StringSerializer;

class Producer {
  public static void main(String[] args) {
    String topic = args[1], user = args[2], type = args[3];
    // Idempotent: retries neither repeat an event nor change the order.
    Map<String, Object> config = Map.of(
        BOOTSTRAP_SERVERS_CONFIG, args[0], ENABLE_IDEMPOTENCE_CONFIG, true, ACKS_CONFIG, "all", MAX_BLOCK_MS_CONFIG, 10_000);
    var failures = new AtomicInteger();
    // Closing waits for all reports.
    try (var producer = new KafkaProducer<>(config, new StringSerializer(), new StringSerializer())) {
      for (String payload : Arrays.copyOfRange(args, 4, args.length)) {
        // Keyed by user: a user's events stay in one partition, and so in order.
        var event = new ProducerRecord<>(topic, user, payload);
        // A CloudEvent in binary mode: the payload is the value, and no JSON has to be put together. The id makes an
        // event that you send again, after a crash for example, arrive once.
        Map.of("ce_specversion", "1.0", "ce_source", "/example", "ce_id", UUID.randomUUID().toString(),
                "ce_subject", user, "ce_type", type)
            .forEach((name, value) -> event.headers().add(name, value.getBytes(UTF_8)));
        producer.send(event, (written, error) -> {
          if (error == null) {
            System.out.println("partition " + written.partition() + ", offset " + written.offset());
          } else {
            failures.incrementAndGet();
            System.err.println("not written: " + error);
          }
        });
      }
    }
    System.exit(failures.get() == 0 ? 0 : 1);
  }
}
